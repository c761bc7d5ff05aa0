// SPDX-License-Identifier: MPL-2.0
// A message that arrives two seconds after it is published.
//
//	go run delayed.go [amqp://guest:guest@localhost:5672]

//go:build ignore

package main

import (
	"fmt"
	"log"
	"os"
	"time"

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

	published := time.Now()
	confirm, err := channel.PublishWithDeferredConfirm("later", "job", false, false,
		amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("hello"),
			Headers: amqp.Table{"x-delay": 2000}})
	check(err)
	if !confirm.Wait() {
		log.Fatal("the broker did not take it")
	}

	messages, err := channel.Consume("work", "", false, false, false, false, nil)
	check(err)
	message := <-messages
	fmt.Printf("%s, %.1f s later\n", message.Body, time.Since(published).Seconds())
	fmt.Printf("x-delay: %d\n", message.Headers["x-delay"])
	check(message.Ack(false))
}
