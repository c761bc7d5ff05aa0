// SPDX-License-Identifier: MPL-2.0
// What Machinery says of a broker that is lost while a confirm is out (../lost.py).

//go:build ignore

package main

import (
	"bufio"
	"fmt"
	"os"

	"github.com/RichardKnop/machinery/v2"
	null "github.com/RichardKnop/machinery/v2/backends/null"
	broker "github.com/RichardKnop/machinery/v2/brokers/amqp"
	"github.com/RichardKnop/machinery/v2/config"
	lock "github.com/RichardKnop/machinery/v2/locks/eager"
	"github.com/RichardKnop/machinery/v2/log"
	"github.com/RichardKnop/machinery/v2/tasks"
)

type silent struct{}

func (silent) Print(...interface{})          {}
func (silent) Printf(string, ...interface{}) {}
func (silent) Println(...interface{})        {}
func (silent) Fatal(...interface{})          {}
func (silent) Fatalf(string, ...interface{}) {}
func (silent) Fatalln(...interface{})        {}
func (silent) Panic(...interface{})          {}
func (silent) Panicf(string, ...interface{}) {}
func (silent) Panicln(...interface{})        {}

func main() {
	log.Set(silent{})
	settings := &config.Config{
		Broker:       os.Args[1],
		DefaultQueue: "lost",
		AMQP:         &config.AMQPConfig{Exchange: "lost", ExchangeType: "direct", BindingKey: "lost"},
	}
	server := machinery.NewServer(settings, broker.New(settings), null.New(), lock.New())
	send := func() error {
		_, err := server.SendTask(&tasks.Signature{Name: "x"})
		return err
	}
	// It connects with the first task.
	if err := send(); err != nil {
		fmt.Println(err)
	}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	fmt.Println(send())
}
