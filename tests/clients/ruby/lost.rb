# SPDX-License-Identifier: MPL-2.0
# What Bunny says of a broker that is lost while a confirm is out (../lost.py).

require "bunny"

$stdout.sync = true
connection = Bunny.new(ARGV[0], logger: Logger.new(File::NULL)).start
channel = connection.create_channel
channel.confirm_select
channel.queue("lost", durable: true)
puts "ready"
$stdin.gets
channel.default_exchange.publish("x", routing_key: "lost", persistent: true)
puts "sent"
begin
  puts "confirmed: #{channel.wait_for_confirms}"
rescue StandardError, Timeout::Error => e
  puts e.class
end
