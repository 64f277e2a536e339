package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"slices"
	"strings"
)

// origin is what brings C libraries into a program: a Go module, or the C compiler of the images.
type origin struct {
	name string
	// version is the only one whose libraries are known here.
	version string
}

var (
	kafka  = origin{"github.com/confluentinc/confluent-kafka-go/v2", "v2.15.0"}
	sqlite = origin{"github.com/mattn/go-sqlite3", "v1.14.53"}
	zig    = origin{"zig", "0.17.1"}
)

// library is a C library that is linked into a program.
type library struct {
	from          origin
	name, version string
	// mark is what every program has in it that is linked with this version, and no other. VERSION
	// stands for the version. Some libraries leave no text, or a bare number, which could be of
	// anything. Their mark is empty, and their version follows from that of the origin alone.
	mark string
	// product is the vendor and the product in the CPE dictionary, by which scanners find C libraries.
	product string
	// repository is the owner and the name on GitHub of a library that is in no such dictionary.
	repository string
	// licence is an SPDX expression.
	licence string
}

// libraries are those that the origins bring. What librdkafka has copied without a version (cJSON,
// nanopb, snappy and others) counts as a part of it. The tests compare the table with the modules
// in go.mod and with services/Dockerfile, so that an upgrade of these needs a look at it.
var libraries = []library{
	{
		from: kafka, name: "librdkafka", version: "2.15.0",
		repository: "confluentinc/librdkafka", licence: "BSD-2-Clause",
	},
	{
		from: kafka, name: "openssl", version: "3.5.6", mark: "OpenSSL VERSION ",
		product: "openssl:openssl", licence: "Apache-2.0",
	},
	{
		from: kafka, name: "curl", version: "8.20.0",
		product: "haxx:curl", licence: "curl",
	},
	{
		from: kafka, name: "zlib", version: "1.3.2", mark: " inflate VERSION Copyright ",
		product: "zlib:zlib", licence: "Zlib",
	},
	{
		from: kafka, name: "zstd", version: "1.5.7",
		product: "facebook:zstandard", licence: "BSD-3-Clause OR GPL-2.0-only",
	},
	{
		from: kafka, name: "lz4", version: "1.9.4",
		product: "lz4_project:lz4", licence: "BSD-2-Clause",
	},
	{
		from: sqlite, name: "sqlite", version: "3.54.1",
		// SQLite's source ID: the time and the hash of the release's check-in.
		mark:    "2026-10-16 14:45:20 555e07ef33f69a0957d24d8e555b702464a131d6f1607f4c3c1e4551e8e6ca76",
		product: "sqlite:sqlite", licence: "blessing",
	},
	{
		from: zig, name: "musl", version: "1.2.5",
		// musl leaves no text, but its compiler does: this is the clang in zig.
		mark:    "clang version 22.1.8",
		product: "musl-libc:musl", licence: "MIT",
	},
}

// advice is what to do if a version is not known.
const advice = "correct the table in services/cmd/sbom/libraries.go, which its tests compare with what is linked"

// linked returns the C libraries in a program. It returns an error rather than a version that may be
// wrong.
func linked(info *buildinfo.BuildInfo, program []byte) ([]library, error) {
	var found []library
	for _, l := range libraries {
		used := l.from.usedBy(info)
		if used == "" {
			continue
		}
		if used != l.from.version {
			return nil, fmt.Errorf("the version of %s in %s %s is not known, only that in %s: %s",
				l.name, l.from.name, used, l.from.version, advice)
		}
		if !bytes.Contains(program, []byte(l.text())) {
			return nil, fmt.Errorf("%s %s of %s %s is not in the program, which has no %q: %s",
				l.name, l.version, l.from.name, used, l.text(), advice)
		}
		found = append(found, l)
	}
	return found, nil
}

// usedBy returns the version of the origin with which a program is built. It is empty if the
// program is built without the origin.
func (o origin) usedBy(info *buildinfo.BuildInfo) string {
	if o == zig {
		// The build information does not have the C compiler. Only the images are built with this
		// tag, and their compiler is zig.
		for _, s := range info.Settings {
			if s.Key == "-tags" && slices.Contains(strings.Split(s.Value, ","), "musl") {
				return o.version
			}
		}
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == o.name && m.Replace != nil {
			return m.Replace.Path + " " + m.Replace.Version
		}
		if m.Path == o.name {
			return m.Version
		}
	}
	return ""
}

// text returns the mark with the version in it.
func (l library) text() string { return strings.ReplaceAll(l.mark, "VERSION", l.version) }
