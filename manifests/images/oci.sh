# An OCI layout, as shell functions: blobs named by digest, and the base that images stand on. Sourced by build and base-debootstrap.

say() { echo "images: $*" >&2; }
fail() {
	echo "images: $*" >&2
	exit 1
}

# need PROGRAM PACKAGE WHY: there, or installed (Debian and Ubuntu as root), or asked for.
need() {
	PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null && return
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		say "installing $2"
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$2"; } >/dev/null 2>&1 && return
	fi
	fail "$1 is missing (package $2 in Debian): $3"
}

sha() { sha256sum "$1" | cut -d' ' -f1; }
blob() { echo "$1/blobs/sha256/${2#sha256:}"; }
size() { numfmt --to=iec --format=%.1f "$1"; }

# keep LAYOUT FILE TYPE: the file becomes a blob; prints its descriptor.
keep() {
	local digest
	digest=$(sha "$2")
	printf '{"mediaType":"%s","digest":"sha256:%s","size":%d}' "$3" "$digest" "$(stat -c %s "$2")"
	mv "$2" "$(blob "$1" "$digest")"
}

# The base's manifest digest, manifest and configuration.
base_digest() { jq -r '.manifests[0].digest' "$base/index.json"; }
base_manifest() { cat "$(blob "$base" "$(base_digest)")"; }
base_config() { cat "$(blob "$base" "$(base_manifest | jq -r .config.digest)")"; }
