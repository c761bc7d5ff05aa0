// SPDX-License-Identifier: MPL-2.0
// header_values.go URL EXCHANGE CASES: sends the cases of ../header_values.py with amqp091-go.

//go:build ignore

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
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

func octets(value any) []byte {
	var all []byte
	for _, octet := range value.([]any) {
		all = append(all, byte(integer(octet)))
	}
	return all
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
	case "D":
		parts := value.([]any)
		return amqp.Decimal{Scale: uint8(integer(parts[1])), Value: int32(integer(parts[0]))}
	case "T":
		return time.Unix(integer(value), 0)
	case "x":
		return octets(value)
	case "S":
		if text, isText := value.(string); isText {
			return text
		}
		return string(octets(value))
	case "F":
		table := amqp.Table{}
		for name, inner := range value.(map[string]any) {
			table[name] = int32(integer(inner))
		}
		return table
	case "A":
		var array []any
		for _, inner := range value.([]any) {
			array = append(array, int32(integer(inner)))
		}
		return array
	}
	return value
}

func send(connection *amqp.Connection, exchange string, one Case) any {
	channel, err := connection.Channel()
	check(err)
	check(channel.Confirm(false))
	closed := channel.NotifyClose(make(chan *amqp.Error, 1))
	headers := amqp.Table{"x-delay": native(one.Type, one.Value)}
	if one.Copy {
		headers["copy"] = headers["x-delay"]
	}
	confirm, err := channel.PublishWithDeferredConfirm(exchange, "k", false, false,
		amqp.Publishing{Body: []byte(one.Name), Headers: headers})
	check(err)
	if !confirm.Wait() {
		return (<-closed).Reason
	}
	check(channel.Close())
	return nil
}

func main() {
	text, err := os.ReadFile(os.Args[3])
	check(err)
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var cases []Case
	check(decoder.Decode(&cases))
	connection, err := amqp.Dial(os.Args[1])
	check(err)
	defer connection.Close()
	told := map[string]any{}
	for _, one := range cases {
		told[one.Name] = send(connection, os.Args[2], one)
	}
	answer, err := json.Marshal(told)
	check(err)
	fmt.Println(string(answer))
}
