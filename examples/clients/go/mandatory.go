// SPDX-License-Identifier: MPL-2.0
// Mandatory: what is delayed is taken, and never returned; what is not delayed is returned if no queue
// is bound now.
//
//	go run mandatory.go [amqp://guest:guest@localhost:5672]

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
	// Room for what comes before the confirm: the library waits until it is taken.
	returns := channel.NotifyReturn(make(chan amqp.Return, 1))

	publish := func(text string, headers amqp.Table) {
		confirm, err := channel.PublishWithDeferredConfirm("later", "nobody", true, false,
			amqp.Publishing{Body: []byte(text), Headers: headers})
		check(err)
		confirm.Wait()
		select {
		case returned := <-returns:
			fmt.Printf("%s: returned, %s\n", text, returned.ReplyText)
		default:
			fmt.Printf("%s: taken\n", text)
		}
	}

	publish("in a second", amqp.Table{"x-delay": 1000})
	publish("at once", nil)
}
