// SPDX-License-Identifier: MPL-2.0
// AMQP 1.0, for RabbitMQ 4: the delay is a message annotation. The exchange `later` and the queue `work`,
// bound to it with the key "job", are there already.
//
//	go run with_amqp10.go [amqp://guest:guest@localhost:5672]

//go:build ignore

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/Azure/go-amqp"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	url := append(os.Args, "amqp://guest:guest@localhost:5672")[1]
	ctx := context.Background()
	connection, err := amqp.Dial(ctx, url, nil)
	check(err)
	defer connection.Close()

	send := func(session *amqp.Session, text string, annotations amqp.Annotations) error {
		sender, err := session.NewSender(ctx, "/exchanges/later/job", nil)
		check(err)
		message := amqp.NewMessage([]byte(text))
		message.Header = &amqp.MessageHeader{Durable: true}
		message.Annotations = annotations
		return sender.Send(ctx, message, nil)
	}
	session, err := connection.NewSession(ctx, nil)
	check(err)
	published := time.Now()
	check(send(session, "order 1", amqp.Annotations{"x-delay": 5000, "x-delay-key": "order 1"}))
	check(send(session, "hello", amqp.Annotations{"x-delay": 6000}))
	check(send(session, "", amqp.Annotations{"x-delay-cancel": "order 1"}))

	// A wrong delay ends the session, and with it all that is sent in it.
	doomed, err := connection.NewSession(ctx, nil)
	check(err)
	err = send(doomed, "hello", amqp.Annotations{"x-delay": "5m"})
	var ended *amqp.SessionError
	if errors.As(err, &ended) && ended.RemoteErr != nil {
		fmt.Printf("5m: %s\n", ended.RemoteErr.Description)
	}

	receiver, err := session.NewReceiver(ctx, "/queues/work", nil)
	check(err)
	message, err := receiver.Receive(ctx, nil)
	check(err)
	fmt.Printf("%s, %.1f s later\n", message.GetData(), time.Since(published).Seconds())
	fmt.Printf("x-delay: %d\n", message.Annotations["x-delay"])
	check(receiver.AcceptMessage(ctx, message))
}
