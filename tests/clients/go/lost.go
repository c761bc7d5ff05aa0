// SPDX-License-Identifier: MPL-2.0
// What amqp091-go says of a broker that is lost while a confirm is out (../lost.py).

//go:build ignore

package main

import (
	"bufio"
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
	connection, err := amqp.Dial(os.Args[1])
	check(err)
	channel, err := connection.Channel()
	check(err)
	check(channel.Confirm(false))
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	_, err = channel.QueueDeclare("lost", true, false, false, false, nil)
	check(err)
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	confirm, err := channel.PublishWithDeferredConfirm("", "lost", false, false,
		amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("x")})
	check(err)
	fmt.Println("sent")
	fmt.Printf("confirmed: %t\n", confirm.Wait())
	fmt.Println("closed:", (<-closed).Code)
}
