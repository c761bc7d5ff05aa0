# SPDX-License-Identifier: MPL-2.0
# A message that arrives two seconds after it is published.
#
#     gem install bunny
#     ruby delayed.rb [amqp://guest:guest@localhost:5672]

require "bunny"

connection = Bunny.new(ARGV[0] || "amqp://guest:guest@localhost:5672").start
channel = connection.create_channel
channel.confirm_select
later = channel.exchange("later", type: "x-delayed-message", durable: true,
                                  arguments: { "x-delayed-type" => "direct" })
work = channel.queue("work", durable: true).bind(later, routing_key: "job")

published = Process.clock_gettime(Process::CLOCK_MONOTONIC)
later.publish("hello", routing_key: "job", persistent: true, headers: { "x-delay" => 2000 })
channel.wait_for_confirms

received = Thread::Queue.new
work.subscribe(manual_ack: true) { |*message| received << message }
delivery, properties, body = received.pop
seconds = Process.clock_gettime(Process::CLOCK_MONOTONIC) - published
puts format("%s, %.1f s later", body, seconds)
puts "x-delay: #{properties.headers["x-delay"]}"
channel.ack(delivery.delivery_tag)
connection.close
