// SPDX-License-Identifier: MPL-2.0
// What go-amqp says of a broker that is lost while an outcome is out (../lost.py).

//go:build ignore

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/Azure/go-amqp"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	other, err := amqp091.Dial(os.Args[1])
	check(err)
	channel, err := other.Channel()
	check(err)
	_, err = channel.QueueDeclare("lost", true, false, false, false, nil)
	check(err)
	check(other.Close())

	ctx := context.Background()
	connection, err := amqp.Dial(ctx, strings.TrimSuffix(os.Args[1], "/%2F"), nil)
	check(err)
	session, err := connection.NewSession(ctx, nil)
	check(err)
	sender, err := session.NewSender(ctx, "/queues/lost", nil)
	check(err)
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	message := amqp.NewMessage([]byte("x"))
	message.Header = &amqp.MessageHeader{Durable: true}
	receipt, err := sender.SendWithReceipt(ctx, message, nil)
	check(err)
	fmt.Println("sent")
	_, err = receipt.Wait(ctx)
	var lost *amqp.ConnError
	fmt.Println("connection lost:", errors.As(err, &lost))
}
