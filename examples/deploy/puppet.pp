# SPDX-License-Identifier: MPL-2.0
$deb = '/var/tmp/rabbitmq-delay-wheel_0.1.0_all.deb'
package { 'rabbitmq-delay-wheel': provider => apt, ensure => installed, source => $deb }
-> exec { '/usr/sbin/rabbitmq-plugins enable rabbitmq_delay_wheel':
  unless => '/usr/sbin/rabbitmq-plugins is_enabled rabbitmq_delay_wheel' }
