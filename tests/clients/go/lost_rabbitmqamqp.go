// SPDX-License-Identifier: MPL-2.0
// What rabbitmq-amqp-go-client says of a broker that is lost while an outcome is out (../lost.py).

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
	rmq "github.com/rabbitmq/rabbitmq-amqp-go-client/pkg/rabbitmqamqp"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	ctx := context.Background()
	connection, err := rmq.Dial(ctx, strings.TrimSuffix(os.Args[1], "/%2F"), nil)
	check(err)
	_, err = connection.Management().DeclareQueue(ctx, &rmq.QuorumQueueSpecification{Name: "lost"})
	check(err)
	publisher, err := connection.NewPublisher(ctx, &rmq.QueueAddress{Queue: "lost"}, nil)
	check(err)
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	told := make(chan error)
	check(publisher.PublishAsync(ctx, rmq.NewMessage([]byte("x")),
		func(_ *rmq.PublishResult, err error) { told <- err }))
	fmt.Println("sent")
	var lost *amqp.ConnError
	fmt.Println("connection lost:", errors.As(<-told, &lost))
}
