#!/bin/sh
# Makes sure that libclang is installed, which the build of RocksDB's bindings loads.
# Says nothing when it is there already.
set -eu

say() { printf '%s\n' "get-libclang: $*" >&2; }

# The same places where the build looks: LIBCLANG_PATH, llvm-config, the linker's cache, usual folders.
present() {
    if [ -n "${LIBCLANG_PATH:-}" ]; then
        [ -f "$LIBCLANG_PATH" ] && return 0
        for file in "$LIBCLANG_PATH"/libclang*.so* "$LIBCLANG_PATH"/libclang*.dylib; do
            [ -e "$file" ] && return 0
        done
    fi
    if command -v llvm-config >/dev/null 2>&1; then
        for file in "$(llvm-config --libdir)"/libclang.so* "$(llvm-config --libdir)"/libclang.dylib; do
            [ -e "$file" ] && return 0
        done
    fi
    for file in /usr/lib/llvm-*/lib/libclang.so* /usr/lib/llvm-*/lib/libclang-*.so* \
        /usr/lib/*-linux-*/libclang.so* /usr/lib/*-linux-*/libclang-*.so* \
        /usr/lib64/libclang.so* /usr/lib/libclang.so* /usr/local/lib/libclang.so* \
        /Library/Developer/CommandLineTools/usr/lib/libclang.dylib; do
        case $file in *libclang-cpp*) continue ;; esac
        [ -e "$file" ] && return 0
    done
    return 1
}

if present; then exit 0; fi

distribution=$( (. /etc/os-release && printf '%s' "${ID:-} ${ID_LIKE:-}") 2>/dev/null || true)
case " $distribution " in
*" debian "*) ;;
*)
    say "libclang is missing. Install it (Fedora: clang-devel, Arch: clang, macOS: xcode-select --install)
or set LIBCLANG_PATH to the folder that holds libclang.so."
    exit 1
    ;;
esac

if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1; then
    as_root=sudo
else
    say "libclang is missing. As root, run: apt-get install libclang-dev"
    exit 1
fi
say "installing libclang-dev"
install() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install libclang-dev >&2
}
# The package lists of a fresh image are often empty or stale, so a failure is retried with new ones.
install || { $as_root apt-get -q update >&2 && install; } || {
    say "could not install it. As root, run: apt-get update && apt-get install libclang-dev"
    exit 1
}
present || {
    say "libclang-dev is installed, but no libclang.so was found; set LIBCLANG_PATH to its folder"
    exit 1
}
