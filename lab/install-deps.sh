#!/bin/sh
# What the lab, the demo, the tests and the benchmarks run besides our own binaries.
# Debian and Ubuntu, as root: installs what is missing. Anywhere else: names it and leaves the choice to you.
set -eu

# program that shows the package is there : Debian's package : what it is for
wanted='
ip:iproute2:network namespaces, links, routes
nft:nftables:the packet rules inside pods
/usr/lib/cni/bridge:containernetworking-plugins:the reference CNI plugins the chain starts with
dnsmasq:dnsmasq-base:the name server of the outside world
tcpdump:tcpdump:captures that prove what is on the wire
curl:curl:a client
openssl:openssl:a TLS client without a certificate
setpriv:util-linux:becoming another user, entering namespaces
hostname:hostname:asking a pod its name
nginx:nginx-light:a server
redis-server:redis-server:a server
redis-cli:redis-tools:a client
psql:postgresql-client:a client
postgres:postgresql:a server
cc:build-essential:the C parts of the crypto library
'

# Programs may be where a login shell's PATH does not look, and postgres hides its server by version.
there() {
	case $1 in
	/*) [ -x "$1" ] || [ -x "/opt/cni/bin/${1##*/}" ] ;;
	postgres) ls /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres >/dev/null 2>&1 || command -v postgres >/dev/null 2>&1 ;;
	*) PATH="$PATH:/usr/sbin:/sbin:/usr/local/sbin" command -v "$1" >/dev/null 2>&1 ;;
	esac
}

packages=
missing=
old_ifs=$IFS
IFS='
'
for row in $wanted; do
	program=${row%%:*}
	rest=${row#*:}
	package=${rest%%:*}
	if ! there "$program"; then
		packages="$packages $package"
		missing="$missing
  $program ($package in Debian): ${rest#*:}"
	fi
done
IFS=$old_ifs

[ -n "$packages" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	echo "installing:$packages"
	export DEBIAN_FRONTEND=noninteractive
	# The packages bring services; a policy of "do not start" keeps the machine's ports as they were.
	policy=/usr/sbin/policy-rc.d
	made=
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
		made=yes
	fi
	undo() { if [ -n "$made" ]; then rm -f "$policy"; fi; }
	trap undo EXIT
	apt-get update -qq || echo "package lists could not be refreshed; going on with those there are" >&2
	# shellcheck disable=SC2086 # a list of words
	apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $packages >/dev/null
	exit 0
fi

echo "Please install:$missing" >&2
exit 1
