// SPDX-License-Identifier: MPL-2.0
// Retry: the consumer rejects, the exchange gives the message back after a pause, three times at most,
// and parks it then.
//
//	go run retry.go [amqp://guest:guest@localhost:5672]

//go:build ignore

package main

import (
	"fmt"
	"log"
	"os"

	amqp "github.com/rabbitmq/amqp091-go"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// One more than it was rejected.
func attemptOf(message amqp.Delivery) int64 {
	attempt := int64(1)
	deaths, _ := message.Headers["x-death"].([]any)
	for _, death := range deaths {
		if death := death.(amqp.Table); death["queue"] == "orders" {
			attempt += death["count"].(int64)
		}
	}
	return attempt
}

func main() {
	url := append(os.Args, "amqp://guest:guest@localhost:5672")[1]
	connection, err := amqp.Dial(url)
	check(err)
	defer connection.Close()
	channel, err := connection.Channel()
	check(err)
	check(channel.ExchangeDeclare("retry", "x-delayed-message", true, false, false, false,
		amqp.Table{
			"x-delayed-type":                    "direct",
			"x-delay-retry":                     "100ms,200ms,400ms",
			"x-delay-retry-parking-exchange":    "",
			"x-delay-retry-parking-routing-key": "parked",
		}))
	_, err = channel.QueueDeclare("parked", true, false, false, false, nil)
	check(err)
	_, err = channel.QueueDeclare("orders", true, false, false, false,
		amqp.Table{"x-dead-letter-exchange": "retry"})
	check(err)

	orders, err := channel.Consume("orders", "", false, false, false, false, nil)
	check(err)
	parked, err := channel.Consume("parked", "", false, false, false, false, nil)
	check(err)
	check(channel.Publish("", "orders", false, false,
		amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("order 1")}))
	for {
		select {
		case message := <-orders:
			fmt.Printf("%s, attempt %d\n", message.Body, attemptOf(message))
			check(message.Reject(false))
		case message := <-parked:
			fmt.Printf("%s is parked: %s\n", message.Body, message.Headers["x-delay-death-reason"])
			check(message.Ack(false))
			return
		}
	}
}
