// SPDX-License-Identifier: MPL-2.0
// Cancel: a message with the header x-delay-cancel cancels what is pending under that key.
//
//	go run cancel.go [amqp://guest:guest@localhost:5672]

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

func main() {
	url := append(os.Args, "amqp://guest:guest@localhost:5672")[1]
	connection, err := amqp.Dial(url)
	check(err)
	defer connection.Close()
	channel, err := connection.Channel()
	check(err)
	check(channel.Confirm(false))
	check(channel.ExchangeDeclare("later", "x-delayed-message", true, false, false, false,
		amqp.Table{"x-delayed-type": "direct"}))
	_, err = channel.QueueDeclare("work", true, false, false, false, nil)
	check(err)
	check(channel.QueueBind("work", "job", "later", false, nil))

	publish := func(text string, headers amqp.Table) {
		confirm, err := channel.PublishWithDeferredConfirm("later", "job", false, false,
			amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(text), Headers: headers})
		check(err)
		if !confirm.Wait() {
			log.Fatal("the broker did not take it")
		}
	}

	for _, order := range []string{"order 1", "order 2", "order 3"} {
		publish(order, amqp.Table{"x-delay": 5000, "x-delay-key": order})
	}
	publish("", amqp.Table{"x-delay-cancel": "order 2"})

	messages, err := channel.Consume("work", "", false, false, false, false, nil)
	check(err)
	for left := 2; left > 0; left-- {
		message := <-messages
		fmt.Printf("expired: %s\n", message.Body)
		check(message.Ack(false))
	}
}
