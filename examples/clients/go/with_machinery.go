// SPDX-License-Identifier: MPL-2.0
// Machinery: a task's headers are the message's. Machinery declares its exchange without arguments, so
// this program declares it first.
//
//	go run with_machinery.go [amqp://guest:guest@localhost:5672]

//go:build ignore

package main

import (
	"fmt"
	"log"
	"os"
	"time"

	"github.com/RichardKnop/machinery/v2"
	null "github.com/RichardKnop/machinery/v2/backends/null"
	broker "github.com/RichardKnop/machinery/v2/brokers/amqp"
	"github.com/RichardKnop/machinery/v2/config"
	lock "github.com/RichardKnop/machinery/v2/locks/eager"
	"github.com/RichardKnop/machinery/v2/tasks"
	amqp "github.com/rabbitmq/amqp091-go"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func declare(url string) {
	connection, err := amqp.Dial(url)
	check(err)
	defer connection.Close()
	channel, err := connection.Channel()
	check(err)
	check(channel.ExchangeDeclare("later", "x-delayed-message", true, false, false, false,
		amqp.Table{"x-delayed-type": "direct"}))
}

func main() {
	url := append(os.Args, "amqp://guest:guest@localhost:5672")[1]
	declare(url)
	settings := &config.Config{
		Broker:       url,
		DefaultQueue: "work",
		AMQP: &config.AMQPConfig{
			Exchange:      "later",
			ExchangeType:  "x-delayed-message",
			BindingKey:    "work",
			PrefetchCount: 1,
		},
	}
	server := machinery.NewServer(settings, broker.New(settings), null.New(), lock.New())

	published := time.Now()
	done := make(chan string)
	check(server.RegisterTask("greet", func(name string) error {
		done <- fmt.Sprintf("%s, %.1f s later", name, time.Since(published).Seconds())
		return nil
	}))
	worker := server.NewWorker("worker", 1)
	go worker.Launch()

	// Not ETA: with it, Machinery makes a queue of its own for each delay.
	task := func(name string, headers tasks.Headers) error {
		_, err := server.SendTask(&tasks.Signature{Name: "greet", Headers: headers,
			Args: []tasks.Arg{{Type: "string", Value: name}}})
		return err
	}
	check(task("order 1", tasks.Headers{"x-delay": 5000, "x-delay-key": "order 1"}))
	check(task("hello", tasks.Headers{"x-delay": 6000}))
	check(task("", tasks.Headers{"x-delay-cancel": "order 1"}))
	fmt.Println(<-done)

	// Without the reason: that is in the broker's log.
	fmt.Printf("5m refused: %t\n", task("wrong", tasks.Headers{"x-delay": "5m"}) != nil)
	worker.Quit()
}
