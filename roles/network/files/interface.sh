# network role, interface.sh
# Looks at one interface, changes it, and brings it back: sh -c SCRIPT sh VERB INTERFACE [LINE…]. It is given to the NAS
# with each call, so that it is there without the controller and never older than the role.
set -u
verb=$1 interface=$2
shift 2
# What it had before the change under way; and before its first change, for when it is given back.
note=${NAS_NETWORK_NOTES:-/run/nas-assistant}/network-$interface
first=${NAS_NETWORK_FIRST:-/var/lib/nas-assistant-network}/$interface
switches='disable_ipv6 accept_ra autoconf use_tempaddr'

# Addresses that somebody set, in one line each, with the broadcast address where it has one.
addresses() {
  { ip -o -4 address show dev "$interface" scope global; ip -o -6 address show dev "$interface" scope global permanent; } |
    awk '{ print $4 ($5 == "brd" ? " brd " $6 : "") }'
}

# Ways out of a family, -4 or -6.
gateways() {
  ip "$1" route show default dev "$interface" | awk '$2 == "via" { print $3 }'
}

# Write down what it has: switches as commands, since no manager turns them back, and addresses that it may fail to give.
keep() {
  mkdir -p "${note%/*}" "${first%/*}"
  rm -f "$note.first"
  {
    echo "ip link set dev $interface mtu $(cat "/sys/class/net/$interface/mtu")"
    for switch in $switches; do
      file=/proc/sys/net/ipv6/conf/$interface/$switch
      [ ! -e "$file" ] || echo "echo $(cat "$file") > $file"
    done
  } > "$note.switches"
  addresses > "$note.addresses"
  for family in -4 -6; do
    gateways "$family" | sed "s/^/$family /"
  done > "$note.ways"
  [ -e "$first" ] || cp "$note.switches" "$first"
}

# Give it the switches that it had at first.
give_back() {
  [ -e "$first" ] || return 0
  mv "$first" "$note.first"
  sh "$note.first"
}

# Before a manager takes it back: its switches, so that it can give IPv6 addresses again.
turn_back() {
  [ ! -e "$note.switches" ] || sh "$note.switches"
  [ ! -e "$note.first" ] || mv "$note.first" "$first"
}

# Whether it has an address; and all that it had.
has() {
  ip -o address show dev "$interface" | grep -qF " $1 "
}
has_all() {
  while read -r address _; do
    has "$address" || return 1
  done < "$note.addresses"
}

# After that, whatever the manager says of it: what is still missing, and not what was tried.
put_back() {
  [ -e "$note.addresses" ] || return 0
  for tried; do
    cut -d ' ' -f 1 "$note.addresses" | grep -qFx "$tried" || ip address del "$tried" dev "$interface" 2> /dev/null || true
  done
  ip link set dev "$interface" up
  # Managers answer before they have done it.
  patience=${NAS_NETWORK_PATIENCE:-10}
  while [ "$patience" -gt 0 ] && ! has_all; do
    sleep 0.5
    patience=$((patience - 1))
  done
  while read -r address broadcast; do
    # shellcheck disable=SC2086  # two words, or none
    has "$address" || ip address add "$address" $broadcast dev "$interface"
  done < "$note.addresses"
  while read -r family gateway; do
    gateways "$family" | grep -qFx "$gateway" || ip "$family" route add default via "$gateway" dev "$interface"
  done < "$note.ways"
}

# Have ifupdown bring it up. A client of DHCP that ifdown does not find in the new file would bring its old address back.
by_ifupdown() {
  ifdown --force "$interface"
  [ ! -e /usr/sbin/dhcpcd ] || dhcpcd -k "$interface"
  for pid in "/run/dhclient.$interface.pid" "/run/dhclient6.$interface.pid" "/run/udhcpc.$interface.pid"; do
    [ ! -e "$pid" ] || kill "$(cat "$pid")"
  done
  ip address flush dev "$interface" scope global
  ifup --force "$interface"
}

# Have NetworkManager bring it up, with our settings where they are there, else with the best that it has.
by_networkmanager() {
  nmcli connection reload
  nmcli connection up "nas-assistant-$interface" || nmcli device connect "$interface"
}

# Print what is in force, of the lines that are asked for only: what others add to it stays theirs.
show() {
  for line; do set -- "$@" -e "$line"; shift; done
  {
    ip -o -4 address show dev "$interface" | awk '{ print "address " $4 }'
    ip -o -6 address show dev "$interface" -tentative | awk '{ print "address " $4 }'
    for family in -4 -6; do gateways "$family" | sed 's/^/gateway /'; done
    echo "mtu $(cat "/sys/class/net/$interface/mtu")"
    [ -n "$(ip -6 address show dev "$interface")" ] || echo ipv6 none
    for switch in disable_ipv6 use_tempaddr; do
      file=/proc/sys/net/ipv6/conf/$interface/$switch
      # A kernel without IPv6 has nothing that could be switched on.
      [ -e "$file" ] && echo "$switch $(cat "$file")" || printf "$switch %s\n" 0 1
    done
    resolvectl dns "$interface" 2> /dev/null | sed 's/.*): //' | tr ' ' '\n' | sed 's/^/nameserver /'
  } | sort -u | grep -Fx "$@"
}

"$verb" "$@"
