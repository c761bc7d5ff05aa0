# SPDX-License-Identifier: MPL-2.0
# A wrong delay closes the channel, and Bunny's wait_for_confirms does not hear of it: it waits in vain.
# A call that the broker answers, made first, raises what closed the channel.
#
#     gem install bunny
#     ruby wrong.rb [amqp://guest:guest@localhost:5672]

require "bunny"

connection = Bunny.new(ARGV[0] || "amqp://guest:guest@localhost:5672").start

["5m", 1000].each do |delay|
  channel = connection.create_channel
  channel.confirm_select
  later = channel.exchange("later", type: "x-delayed-message", durable: true,
                                    arguments: { "x-delayed-type" => "direct" })
  later.publish("hello", routing_key: "job", headers: { "x-delay" => delay })
  channel.prefetch(0) # The broker answers in order.
  channel.wait_for_confirms
  puts "#{delay}: taken"
rescue Bunny::PreconditionFailed, Bunny::ChannelAlreadyClosed => e
  puts "#{delay}: #{e.message}"
end
connection.close
