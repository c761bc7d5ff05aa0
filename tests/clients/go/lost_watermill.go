// SPDX-License-Identifier: MPL-2.0
// What Watermill says of a broker that is lost while a confirm is out (../lost.py).

//go:build ignore

package main

import (
	"bufio"
	"fmt"
	"log"
	"os"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	config := amqp.NewDurableQueueConfig(os.Args[1])
	config.Publish.ConfirmDelivery = true
	// Else a channel is opened for each message.
	config.Publish.ChannelPoolSize = 1
	subscriber, err := amqp.NewSubscriber(config, watermill.NopLogger{})
	check(err)
	check(subscriber.SubscribeInitialize("lost"))
	publisher, err := amqp.NewPublisher(config, watermill.NopLogger{})
	check(err)
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	err = publisher.Publish("lost", message.NewMessage("1", []byte("x")))
	fmt.Println(err)
}
