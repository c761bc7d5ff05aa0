# SPDX-License-Identifier: MPL-2.0
# Cancel: a message with the header x-delay-cancel cancels what is pending under that key.
#
#     gem install bunny
#     ruby cancel.rb [amqp://guest:guest@localhost:5672]

require "bunny"

connection = Bunny.new(ARGV[0] || "amqp://guest:guest@localhost:5672").start
channel = connection.create_channel
channel.confirm_select
later = channel.exchange("later", type: "x-delayed-message", durable: true,
                                  arguments: { "x-delayed-type" => "direct" })
work = channel.queue("work", durable: true).bind(later, routing_key: "job")

["order 1", "order 2", "order 3"].each do |order|
  later.publish(order, routing_key: "job", persistent: true,
                       headers: { "x-delay" => 5000, "x-delay-key" => order })
end
later.publish("", routing_key: "job", headers: { "x-delay-cancel" => "order 2" })
channel.wait_for_confirms

received = Thread::Queue.new
work.subscribe(manual_ack: true) { |*message| received << message }
2.times do
  delivery, _, body = received.pop
  puts "expired: #{body}"
  channel.ack(delivery.delivery_tag)
end
connection.close
