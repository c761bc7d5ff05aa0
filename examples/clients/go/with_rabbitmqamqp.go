// SPDX-License-Identifier: MPL-2.0
// RabbitMQ's own client for AMQP 1.0, with RabbitMQ 4.0 and later: the delay is a message annotation.
//
//	go run with_rabbitmqamqp.go [amqp://guest:guest@localhost:5672]

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
	rmq "github.com/rabbitmq/rabbitmq-amqp-go-client/pkg/rabbitmqamqp"
)

var ctx = context.Background()

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func declare(management *rmq.AmqpManagement) {
	_, err := management.DeclareExchange(ctx, &rmq.CustomExchangeSpecification{
		Name: "later", ExchangeTypeName: "x-delayed-message",
		Arguments: map[string]any{"x-delayed-type": "direct"}})
	check(err)
	_, err = management.DeclareExchange(ctx, &rmq.CustomExchangeSpecification{
		Name: "retry", ExchangeTypeName: "x-delayed-message",
		Arguments: map[string]any{
			"x-delayed-type":                    "direct",
			"x-delay-retry":                     "100ms,200ms,400ms",
			"x-delay-retry-parking-exchange":    "",
			"x-delay-retry-parking-routing-key": "parked",
		}})
	check(err)
	for _, queue := range []*rmq.QuorumQueueSpecification{
		{Name: "work"}, {Name: "parked"}, {Name: "orders", DeadLetterExchange: "retry"},
	} {
		_, err = management.DeclareQueue(ctx, queue)
		check(err)
	}
	_, err = management.Bind(ctx, &rmq.ExchangeToQueueBindingSpecification{
		SourceExchange: "later", DestinationQueue: "work", BindingKey: "job"})
	check(err)
}

// It is written as persistent.
func publish(connection *rmq.AmqpConnection, target rmq.ITargetAddress, text string,
	annotations amqp.Annotations) (string, error) {
	publisher, err := connection.NewPublisher(ctx, target, nil)
	if err != nil {
		return "", err
	}
	message := rmq.NewMessage([]byte(text))
	message.Annotations = annotations
	result, err := publisher.Publish(ctx, message)
	if err != nil {
		return "", err
	}
	outcome := "refused"
	switch result.Outcome.(type) {
	case *rmq.StateAccepted:
		outcome = "taken"
	case *rmq.StateReleased:
		outcome = "returned"
	}
	return outcome, publisher.Close(ctx)
}

func receive(consumer *rmq.Consumer) rmq.IDeliveryContext {
	delivery, err := consumer.Receive(ctx)
	check(err)
	return delivery
}

// A connection has one session for all of its publishers and consumers.
func wrongDelay(environment *rmq.Environment, target rmq.ITargetAddress) error {
	doomed, err := environment.NewConnection(ctx)
	check(err)
	defer doomed.Close(ctx)
	_, err = publish(doomed, target, "hello", amqp.Annotations{"x-delay": "5m"})
	return err
}

func main() {
	url := append(os.Args, "amqp://guest:guest@localhost:5672")[1]
	environment := rmq.NewEnvironment(url, nil)
	defer environment.CloseConnections(ctx)
	connection, err := environment.NewConnection(ctx)
	check(err)
	declare(connection.Management())
	send := func(target rmq.ITargetAddress, text string, annotations amqp.Annotations) string {
		outcome, err := publish(connection, target, text, annotations)
		check(err)
		return outcome
	}

	// What is to be routed at once is released if no queue is bound. What is delayed is accepted.
	nobody := &rmq.ExchangeAddress{Exchange: "later", Key: "nobody"}
	fmt.Println("delayed:", send(nobody, "hello", amqp.Annotations{"x-delay": 1000}))
	fmt.Println("at once:", send(nobody, "hello", nil))

	later := &rmq.ExchangeAddress{Exchange: "later", Key: "job"}
	var ended *amqp.SessionError
	if errors.As(wrongDelay(environment, later), &ended) && ended.RemoteErr != nil {
		fmt.Printf("5m: %s\n", ended.RemoteErr.Description)
	}

	published := time.Now()
	send(later, "order 1", amqp.Annotations{"x-delay": 5000, "x-delay-key": "order 1"})
	send(later, "hello", amqp.Annotations{"x-delay": 6000})
	send(later, "", amqp.Annotations{"x-delay-cancel": "order 1"})
	work, err := connection.NewConsumer(ctx, "work", nil)
	check(err)
	delivery := receive(work)
	fmt.Printf("%s, %.1f s later\n", delivery.Message().GetData(), time.Since(published).Seconds())
	fmt.Printf("x-delay: %d\n", delivery.Message().Annotations["x-delay"])
	check(delivery.Accept(ctx))

	// Discarded, it comes again after a pause, three times at most, and is parked then.
	send(&rmq.QueueAddress{Queue: "orders"}, "order 1", nil)
	orders, err := connection.NewConsumer(ctx, "orders", nil)
	check(err)
	for attempt := 1; attempt <= 4; attempt++ {
		delivery := receive(orders)
		fmt.Printf("%s, attempt %d\n", delivery.Message().GetData(), attempt)
		check(delivery.Discard(ctx, nil))
	}
	parked, err := connection.NewConsumer(ctx, "parked", nil)
	check(err)
	delivery = receive(parked)
	fmt.Printf("%s is parked: %s\n", delivery.Message().GetData(),
		delivery.Message().Annotations["x-delay-death-reason"])
	check(delivery.Accept(ctx))
}
