// SPDX-License-Identifier: MPL-2.0
// header_values_amqp10.go CLIENT URL EXCHANGE CASES: sends the cases of ../header_values.py with go-amqp or
// rabbitmqamqp.

//go:build ignore

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/Azure/go-amqp"
	rmq "github.com/rabbitmq/rabbitmq-amqp-go-client/pkg/rabbitmqamqp"
)

type Case struct {
	Name, Type string
	Value      any
	Copy       bool
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func integer(value any) int64 {
	n, err := strconv.ParseInt(value.(json.Number).String(), 10, 64)
	check(err)
	return n
}

func float(value any) float64 {
	f, err := value.(json.Number).Float64()
	check(err)
	return f
}

func native(kind string, value any) any {
	switch kind {
	case "b":
		return int8(integer(value))
	case "B":
		return byte(integer(value))
	case "s":
		return int16(integer(value))
	case "u":
		return uint16(integer(value))
	case "I":
		return int32(integer(value))
	case "i":
		return uint32(integer(value))
	case "l":
		return integer(value)
	case "f":
		return float32(float(value))
	case "d":
		return float(value)
	case "T":
		return time.Unix(integer(value), 0)
	case "x":
		var octets []byte
		for _, octet := range value.([]any) {
			octets = append(octets, byte(integer(octet)))
		}
		return octets
	case "F":
		table := map[string]any{}
		for name, inner := range value.(map[string]any) {
			table[name] = int32(integer(inner))
		}
		return table
	case "A":
		var list []any
		for _, inner := range value.([]any) {
			list = append(list, int32(integer(inner)))
		}
		return list
	}
	return value
}

// What ends the session if the broker does not take it. In a connection of its own: RabbitMQ may leave
// unanswered who begins a session right after that, with the channel number of the one that has ended.
func withGoAmqp(ctx context.Context, url, exchange string, message *amqp.Message) error {
	connection, err := amqp.Dial(ctx, url, nil)
	check(err)
	defer connection.Close()
	session, err := connection.NewSession(ctx, nil)
	check(err)
	sender, err := session.NewSender(ctx, "/exchanges/"+exchange+"/k", nil)
	check(err)
	return sender.Send(ctx, message, nil)
}

// It has one session in a connection.
func withRabbitmqamqp(ctx context.Context, url, exchange string, message *amqp.Message) error {
	connection, err := rmq.Dial(ctx, url, nil)
	check(err)
	defer connection.Close(ctx)
	publisher, err := connection.NewPublisher(ctx, &rmq.ExchangeAddress{Exchange: exchange, Key: "k"}, nil)
	check(err)
	result, err := publisher.Publish(ctx, message)
	if err == nil {
		if _, accepted := result.Outcome.(*rmq.StateAccepted); !accepted {
			log.Fatalf("%v", result.Outcome)
		}
	}
	return err
}

var clients = map[string]func(context.Context, string, string, *amqp.Message) error{
	"go-amqp": withGoAmqp, "rabbitmqamqp": withRabbitmqamqp}

func answer(err error) any {
	var ended *amqp.SessionError
	if errors.As(err, &ended) && ended.RemoteErr != nil {
		return ended.RemoteErr.Description
	}
	check(err)
	return nil
}

func main() {
	text, err := os.ReadFile(os.Args[4])
	check(err)
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var cases []Case
	check(decoder.Decode(&cases))
	ctx := context.Background()
	told := map[string]any{}
	for _, one := range cases {
		message := amqp.NewMessage([]byte(one.Name))
		value := native(one.Type, one.Value)
		message.Annotations = amqp.Annotations{"x-delay": value}
		if one.Copy {
			message.ApplicationProperties = map[string]any{"copy": value}
		}
		told[one.Name] = answer(clients[os.Args[1]](ctx, os.Args[2], os.Args[3], message))
	}
	written, err := json.Marshal(told)
	check(err)
	fmt.Println(string(written))
}
