# SPDX-License-Identifier: MPL-2.0
# Mandatory: what is delayed is taken, and never returned; what is not delayed is returned if no queue
# is bound now.
#
#     gem install bunny
#     ruby mandatory.rb [amqp://guest:guest@localhost:5672]

require "bunny"

connection = Bunny.new(ARGV[0] || "amqp://guest:guest@localhost:5672").start
channel = connection.create_channel
channel.confirm_select
later = channel.exchange("later", type: "x-delayed-message", durable: true,
                                  arguments: { "x-delayed-type" => "direct" })

# A return comes before the message's confirm.
returned = nil
later.on_return { |basic_return, *| returned = basic_return.reply_text }

{ "in a second" => { "x-delay" => 1000 }, "at once" => {} }.each do |text, headers|
  returned = nil
  later.publish(text, routing_key: "nobody", mandatory: true, headers: headers)
  channel.wait_for_confirms
  puts "#{text}: #{returned ? "returned, #{returned}" : "taken"}"
end
connection.close
