#!/bin/sh
# Prints the path of a bitcoind on stdout, its only output there; progress and errors go to stderr.
#
# Looks at $BITCOIND, then PATH, then the cache folder. Failing that, on Debian (amd64), it fetches
# the package bitcoin-knots from unstable, and the libraries that it needs from Debian 13, through
# the machine's own mirror and keyring, and unpacks them into the cache folder. Nothing is installed,
# the system's package lists stay as they are, and root is not needed.
#
# $DRAWBRIDGE_CACHE names the cache folder (default $XDG_CACHE_HOME/drawbridge, ~/.cache/drawbridge).
set -eu

LIBRARIES="libc6 libgcc-s1 libstdc++6 libzmq5 libevent-core-2.1-7t64 libevent-extra-2.1-7t64
  libevent-pthreads-2.1-7t64 libsqlite3-0 libbsd0 libmd0 libsodium23 libnorm1t64 libpgm-5.3-0t64
  libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1 libssl3t64 libzstd1"

say() { printf '%s\n' "get-bitcoind: $*" >&2; }
die() { say "$*"; exit 1; }

how_to_install() {
    die "no bitcoind found, and $1.
Install Bitcoin Core or Bitcoin Knots, version 26 or later (https://bitcoincore.org/en/download/),
so that 'bitcoind' and 'bitcoin-cli' are on PATH, or set BITCOIND=/path/to/bitcoind."
}

if [ -n "${BITCOIND:-}" ]; then
    [ -f "$BITCOIND" ] && [ -x "$BITCOIND" ] || die "BITCOIND=$BITCOIND is not an executable file"
    printf '%s\n' "$BITCOIND"
    exit 0
fi
if on_path=$(command -v bitcoind); then
    printf '%s\n' "$on_path"
    exit 0
fi

if [ -n "${DRAWBRIDGE_CACHE:-}" ]; then
    cache=$DRAWBRIDGE_CACHE
elif [ -n "${XDG_CACHE_HOME:-}" ]; then
    cache=$XDG_CACHE_HOME/drawbridge
elif [ -n "${HOME:-}" ]; then
    cache=$HOME/.cache/drawbridge
else
    die "set DRAWBRIDGE_CACHE: there is no HOME to put a cache folder into"
fi
case $cache in /*) ;; *) cache=$PWD/$cache ;; esac
target=$cache/bitcoind
if [ -x "$target/bitcoind" ]; then
    printf '%s\n' "$target/bitcoind"
    exit 0
fi

distribution=$( (. /etc/os-release && printf '%s' "${ID:-}") 2>/dev/null || true)
[ "$distribution" = debian ] || how_to_install "this is not Debian, where one can be fetched"
[ "$(dpkg --print-architecture)" = amd64 ] || how_to_install "one can be fetched on amd64 only"
for tool in apt-get apt-cache dpkg flock awk; do
    command -v "$tool" >/dev/null || how_to_install "'$tool', needed to fetch one, is missing"
done

mkdir -p "$cache"
exec 9>"$cache/.bitcoind.lock"
if ! flock -n 9; then
    say "another run is fetching bitcoind; waiting for it"
    flock -w 900 9 || die "another run has held $cache/.bitcoind.lock for 15 minutes"
fi
if [ -x "$target/bitcoind" ]; then
    printf '%s\n' "$target/bitcoind"
    exit 0
fi

work=$(mktemp -d "$cache/.bitcoind.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$work/candidates" "$work/lists/partial" "$work/cache/archives/partial" \
    "$work/debs" "$work/out/root" "$work/empty"
: >"$work/status"

# One file per apt source that offers 'main' of a Debian release, rewritten for the suites wanted
# here, with its own mirror and keyring. Third parties use the same suite names, so mirrors whose
# path ends in /debian come first, and each is tried until one has the package.
candidates_of_deb822() {
    awk -v out="$work/candidates" -v file="$(basename "$1")" '
        function flush_stanza() {
            if (types ~ /(^|[ \t])deb([ \t]|$)/ && enabled !~ /^(no|false|0)$/ && uris != "" \
                && components ~ /(^|[ \t])main([ \t]|$)/ \
                && suites ~ /(^|[ \t])(bookworm|trixie|forky|duke|sid|oldstable|stable|testing|unstable)([ \t]|$)/) {
                rank = uris ~ /\/debian\/?([ \t]|$)/ ? 0 : 1
                name = out "/" rank "-" file "-" (++count) ".sources"
                printf "Types: deb\nURIs: %s\nSuites: sid trixie\nComponents: main\n", uris > name
                if (signed != "") printf "Signed-By:%s\n", signed > name
                close(name)
            }
            types = uris = suites = components = signed = enabled = field = ""
        }
        /^#/ { next }
        /^[ \t]*$/ { flush_stanza(); next }
        /^[ \t]/ {
            rest = $0; sub(/^[ \t]+/, "", rest)
            if (field == "signed-by") signed = signed "\n " rest
            else if (field == "uris") uris = uris " " rest
            else if (field == "suites") suites = suites " " rest
            else if (field == "components") components = components " " rest
            next
        }
        {
            colon = index($0, ":"); field = tolower(substr($0, 1, colon - 1))
            value = substr($0, colon + 1); gsub(/^[ \t]+|[ \t\r]+$/, "", value)
            if (field == "types") types = value
            else if (field == "uris") uris = value
            else if (field == "suites") suites = value
            else if (field == "components") components = value
            else if (field == "signed-by") signed = " " value
            else if (field == "enabled") enabled = tolower(value)
        }
        END { flush_stanza() }' "$1"
}
candidates_of_one_line() {
    awk -v out="$work/candidates" -v file="$(basename "$1")" '
        { sub(/#.*/, "") }
        $1 == "deb" {
            line = $0; signed = ""
            if (match(line, /\[[^]]*\]/)) {
                options = substr(line, RSTART + 1, RLENGTH - 2)
                line = substr(line, 1, RSTART - 1) " " substr(line, RSTART + RLENGTH)
                n = split(options, option, /[ \t]+/)
                for (i = 1; i <= n; i++)
                    if (option[i] ~ /^signed-by=/) { signed = substr(option[i], 11); gsub(/,/, " ", signed) }
            }
            n = split(line, word, /[ \t]+/)
            main = 0
            for (i = 4; i <= n; i++) if (word[i] == "main") main = 1
            if (!main || word[3] !~ /^(bookworm|trixie|forky|duke|sid|oldstable|stable|testing|unstable)$/) next
            rank = word[2] ~ /\/debian\/?$/ ? 0 : 1
            name = out "/" rank "-" file "-" NR ".sources"
            printf "Types: deb\nURIs: %s\nSuites: sid trixie\nComponents: main\n", word[2] > name
            if (signed != "") printf "Signed-By: %s\n", signed > name
            close(name)
        }' "$1"
}
etc=$(apt-config shell d Dir::Etc/d | sed -n "s/^d='\(.*\)'\$/\1/p")
etc=${etc:-/etc/apt}; etc=${etc%/}
for file in "$etc"/sources.list "$etc"/sources.list.d/*.list; do
    if [ -r "$file" ]; then candidates_of_one_line "$file"; fi
done
for file in "$etc"/sources.list.d/*.sources; do
    if [ -r "$file" ]; then candidates_of_deb822 "$file"; fi
done

private_apt() {
    command=$1; shift
    "$command" \
        -o Dir::Etc::sourcelist="$work/current.sources" -o Dir::Etc::sourceparts="$work/empty" \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts="$work/empty" \
        -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" \
        -o Dir::Cache="$work/cache" -o Dir::Cache::archives="$work/cache/archives" \
        -o Acquire::Languages=none -o Acquire::Retries=3 -o Acquire::http::Timeout=60 \
        -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false \
        -o APT::Sandbox::User="$(id -un)" -o APT::Get::List-Cleanup=false "$@" 9>&-
}

found=
for source in "$work"/candidates/*.sources; do
    [ -e "$source" ] || break
    cp "$source" "$work/current.sources"
    say "reading package lists from $(sed -n 's/^URIs: //p' "$source") into a private folder"
    if private_apt apt-get -q update >"$work/log" 2>&1 \
        && private_apt apt-cache -q show bitcoin-knots/sid >/dev/null 2>>"$work/log"; then
        found=yes
        break
    fi
    sed 's/^/    /' "$work/log" >&2
    rm -rf "$work/lists"; mkdir -p "$work/lists/partial"
done
[ -n "$found" ] || how_to_install "no apt source of this machine leads to one (see above)"

# Unstable moves on: should its package one day need newer libraries than Debian 13's, take its own.
for suite in trixie sid; do
    say "fetching bitcoin-knots (sid) and its libraries ($suite)"
    rm -rf "$work/debs" "$work/out"; mkdir -p "$work/debs" "$work/out/root"
    set -- bitcoin-knots/sid
    for library in $LIBRARIES; do set -- "$@" "$library/$suite"; done
    if ! (cd "$work/debs" && private_apt apt-get -q download "$@") >"$work/log" 2>&1; then
        sed 's/^/    /' "$work/log" >&2
        continue
    fi
    for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/out/root"; done
    # Older packages keep libraries in /lib, newer ones in /usr/lib: search both.
    loader=$(cd "$work/out" && find root -name ld-linux-x86-64.so.2 -type f | head -n 1)
    [ -n "$loader" ] || { say "no dynamic loader in libc6 of $suite"; continue; }
    for program in bitcoind bitcoin-cli; do
        cat >"$work/out/$program" <<WRAPPER
#!/bin/sh
# Runs $program with the libraries that were unpacked beside it (made by get-bitcoind.sh).
here=\$(dirname "\$(readlink -f "\$0")")
exec "\$here/$loader" --argv0 $program \\
    --library-path "\$here/root/usr/lib/x86_64-linux-gnu:\$here/root/lib/x86_64-linux-gnu" \\
    "\$here/root/usr/bin/$program" "\$@"
WRAPPER
        chmod 755 "$work/out/$program"
    done
    if version=$("$work/out/bitcoind" -version 2>"$work/log" | head -n 1) && [ -n "$version" ] \
        && "$work/out/bitcoin-cli" -version >/dev/null 2>>"$work/log"; then
        rm -rf "$target"
        mv "$work/out" "$target"
        say "ready: $version in $target"
        printf '%s\n' "$target/bitcoind"
        exit 0
    fi
    sed 's/^/    /' "$work/log" >&2
done
how_to_install "the one that was fetched does not run here (see above)"
