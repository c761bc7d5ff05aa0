# SPDX-License-Identifier: MPL-2.0
# Retry: the consumer rejects, the exchange gives the message back after a pause, three times at most,
# and parks it then.
#
#     gem install bunny
#     ruby retry.rb [amqp://guest:guest@localhost:5672]

require "bunny"

connection = Bunny.new(ARGV[0] || "amqp://guest:guest@localhost:5672").start
channel = connection.create_channel
channel.exchange("retry", type: "x-delayed-message", durable: true, arguments: {
                   "x-delayed-type" => "direct",
                   "x-delay-retry" => "100ms,200ms,400ms",
                   "x-delay-retry-parking-exchange" => "",
                   "x-delay-retry-parking-routing-key" => "parked"
                 })
parked = channel.queue("parked", durable: true)
orders = channel.queue("orders", durable: true, arguments: { "x-dead-letter-exchange" => "retry" })

# One more than it was rejected.
def attempt(properties)
  deaths = (properties.headers || {}).fetch("x-death", [])
  1 + deaths.select { |death| death["queue"] == "orders" }.sum { |death| death["count"] }
end

orders.subscribe(manual_ack: true) do |delivery, properties, body|
  puts "#{body}, attempt #{attempt(properties)}"
  channel.reject(delivery.delivery_tag, false)
end
received = Thread::Queue.new
parked.subscribe(manual_ack: true) { |*message| received << message }
orders.publish("order 1", persistent: true)
delivery, properties, body = received.pop
puts "#{body} is parked: #{properties.headers["x-delay-death-reason"]}"
channel.ack(delivery.delivery_tag)
connection.close
