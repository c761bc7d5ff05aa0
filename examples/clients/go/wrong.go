// SPDX-License-Identifier: MPL-2.0
// A wrong delay closes the channel. What is not confirmed then is told as refused (Wait() answers false),
// and the reason is what NotifyClose() brings.
//
//	go run wrong.go [amqp://guest:guest@localhost:5672]

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

func publish(connection *amqp.Connection, delay any) {
	channel, err := connection.Channel()
	check(err)
	check(channel.Confirm(false))
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	check(channel.ExchangeDeclare("later", "x-delayed-message", true, false, false, false,
		amqp.Table{"x-delayed-type": "direct"}))
	confirm, err := channel.PublishWithDeferredConfirm("later", "job", false, false,
		amqp.Publishing{Body: []byte("hello"), Headers: amqp.Table{"x-delay": delay}})
	check(err)
	if confirm.Wait() {
		fmt.Printf("%v: taken\n", delay)
		check(channel.Close())
	} else {
		reason := <-closed
		fmt.Printf("%v: %d, %s\n", delay, reason.Code, reason.Reason)
	}
}

func main() {
	url := append(os.Args, "amqp://guest:guest@localhost:5672")[1]
	connection, err := amqp.Dial(url)
	check(err)
	defer connection.Close()
	publish(connection, "5m")
	publish(connection, 1000)
}
