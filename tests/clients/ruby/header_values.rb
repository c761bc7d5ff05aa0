# SPDX-License-Identifier: MPL-2.0
# header_values.rb URL EXCHANGE CASES: sends the cases of ../header_values.py with Bunny.

require "bigdecimal"
require "bunny"
require "json"

def native(type, value)
  case type
  when "D" then BigDecimal(value[0]) / (10**value[1])
  when "T" then Time.at(value)
  when "d", "f" then value.to_f
  when "S" then value.is_a?(Array) ? value.pack("C*") : value
  else value
  end
end

url, exchange, path = ARGV
connection = Bunny.new(url).start
told = JSON.parse(File.read(path)).to_h do |one|
  channel = connection.create_channel
  channel.confirm_select
  header = native(one["type"], one["value"])
  headers = one["copy"] ? { "x-delay" => header, "copy" => header } : { "x-delay" => header }
  begin
    channel.basic_publish(one["name"], exchange, "k", headers: headers)
    channel.prefetch(0)
    channel.wait_for_confirms
    channel.close
    [one["name"], nil]
  rescue Bunny::PreconditionFailed, Bunny::ChannelAlreadyClosed => e
    [one["name"], e.message]
  end
end
connection.close
puts JSON.generate(told)
