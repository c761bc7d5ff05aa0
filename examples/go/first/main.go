// SPDX-License-Identifier: MPL-2.0
// The first message: published now, consumed five seconds later.
//
//	go run . [amqp://guest:guest@localhost:5672]

package main

import (
	"fmt"
	"os"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func check(err error) {
	if err != nil {
		panic(err)
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
	confirm, err := channel.PublishWithDeferredConfirm("later", "job", false, false,
		amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("hello"),
			Headers: amqp.Table{"x-delay": 5000}})
	check(err)
	if !confirm.Wait() {
		panic("the broker did not take it")
	}
	published := time.Now()

	messages, err := channel.Consume("work", "", true, false, false, false, nil)
	check(err)
	message := <-messages
	fmt.Printf("%s, %.1f s later\n", message.Body, time.Since(published).Seconds())
}
