// SPDX-License-Identifier: MPL-2.0
// Watermill: a message's metadata are its headers, all of them strings; so is the delay.
//
//	go run with_watermill.go [amqp://guest:guest@localhost:5672]

//go:build ignore

package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	url := append(os.Args, "amqp://guest:guest@localhost:5672")[1]
	// Topics are routing keys.
	config := amqp.NewDurableTopicConfig(url, "later", "work")
	config.Exchange.Type = "x-delayed-message"
	config.Exchange.Durable = true
	config.Exchange.Arguments = amqp091.Table{"x-delayed-type": "topic"}
	config.Publish.ConfirmDelivery = true

	subscriber, err := amqp.NewSubscriber(config, watermill.NopLogger{})
	check(err)
	defer subscriber.Close()
	messages, err := subscriber.Subscribe(context.Background(), "job")
	check(err)
	publisher, err := amqp.NewPublisher(config, watermill.NopLogger{})
	check(err)
	defer publisher.Close()

	publish := func(text string, metadata message.Metadata) error {
		m := message.NewMessage(watermill.NewUUID(), []byte(text))
		m.Metadata = metadata
		return publisher.Publish("job", m)
	}

	published := time.Now()
	check(publish("order 1", message.Metadata{"x-delay": "5000", "x-delay-key": "order 1"}))
	check(publish("hello", message.Metadata{"x-delay": "6000"}))
	check(publish("", message.Metadata{"x-delay-cancel": "order 1"}))

	// Without the reason: that is in the broker's log.
	err = publish("wrong", message.Metadata{"x-delay": "5m"})
	fmt.Printf("5m refused: %t\n", err != nil)

	m := <-messages
	fmt.Printf("%s, %.1f s later\n", m.Payload, time.Since(published).Seconds())
	fmt.Printf("x-delay: %s\n", m.Metadata["x-delay"])
	m.Ack()
}
