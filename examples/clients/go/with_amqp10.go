// SPDX-License-Identifier: MPL-2.0
// AMQP 1.0, for RabbitMQ 4: the delay is a message annotation. go-amqp declares nothing: the exchange `later`, the
// queue `work`, bound to it with the key "job", and the exchange and queues of retry.go are there already.
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

var ctx = context.Background()

// What becomes of it. A link for each message is not needed, but shorter here.
func send(session *amqp.Session, address, text string, annotations amqp.Annotations) (string, error) {
	sender, err := session.NewSender(ctx, address, nil)
	if err != nil {
		return "", err
	}
	message := amqp.NewMessage([]byte(text))
	message.Header = &amqp.MessageHeader{Durable: true}
	message.Annotations = annotations
	receipt, err := sender.SendWithReceipt(ctx, message, nil)
	if err != nil {
		return "", err
	}
	state, err := receipt.Wait(ctx)
	if err != nil {
		return "", err
	}
	outcome := "refused"
	switch state.(type) {
	case *amqp.StateAccepted:
		outcome = "taken"
	case *amqp.StateReleased:
		outcome = "returned"
	}
	return outcome, sender.Close(ctx)
}

func receive(receiver *amqp.Receiver) *amqp.Message {
	message, err := receiver.Receive(ctx, nil)
	check(err)
	return message
}

func receiverOf(session *amqp.Session, queue string) *amqp.Receiver {
	receiver, err := session.NewReceiver(ctx, "/queues/"+queue, nil)
	check(err)
	return receiver
}

// Rejected, it comes again after a pause, three times at most, and is parked then.
func retry(session *amqp.Session) {
	_, err := send(session, "/queues/orders", "order 1", nil)
	check(err)
	orders := receiverOf(session, "orders")
	for attempt := 1; attempt <= 4; attempt++ {
		message := receive(orders)
		fmt.Printf("%s, attempt %d\n", message.GetData(), attempt)
		check(orders.RejectMessage(ctx, message, nil))
	}
	parked := receiverOf(session, "parked")
	message := receive(parked)
	fmt.Printf("%s is parked: %s\n", message.GetData(), message.Annotations["x-delay-death-reason"])
	check(parked.AcceptMessage(ctx, message))
}

func main() {
	url := append(os.Args, "amqp://guest:guest@localhost:5672")[1]
	connection, err := amqp.Dial(ctx, url, nil)
	check(err)
	defer connection.Close()
	session, err := connection.NewSession(ctx, nil)
	check(err)
	sent := func(key, text string, annotations amqp.Annotations) string {
		outcome, err := send(session, "/exchanges/later/"+key, text, annotations)
		check(err)
		return outcome
	}

	// What is to be routed at once is released if no queue is bound. What is delayed is accepted.
	fmt.Println("delayed:", sent("nobody", "hello", amqp.Annotations{"x-delay": 1000}))
	fmt.Println("at once:", sent("nobody", "hello", nil))

	// A wrong delay ends the session, and with it all that is sent in it.
	doomed, err := connection.NewSession(ctx, nil)
	check(err)
	_, err = send(doomed, "/exchanges/later/job", "hello", amqp.Annotations{"x-delay": "5m"})
	var ended *amqp.SessionError
	if errors.As(err, &ended) && ended.RemoteErr != nil {
		fmt.Printf("5m: %s\n", ended.RemoteErr.Description)
	}

	published := time.Now()
	sent("job", "order 1", amqp.Annotations{"x-delay": 5000, "x-delay-key": "order 1"})
	sent("job", "hello", amqp.Annotations{"x-delay": 6000})
	sent("job", "", amqp.Annotations{"x-delay-cancel": "order 1"})
	work := receiverOf(session, "work")
	message := receive(work)
	fmt.Printf("%s, %.1f s later\n", message.GetData(), time.Since(published).Seconds())
	fmt.Printf("x-delay: %d\n", message.Annotations["x-delay"])
	check(work.AcceptMessage(ctx, message))
	retry(session)
}
