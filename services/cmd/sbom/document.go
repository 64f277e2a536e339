package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"maps"
	"net/url"
	"path"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/CycloneDX/cyclonedx-go"
)

// document describes a program by its build information and the bytes of its file. It has neither a
// time nor a random serial number, so that it is the same for the same program.
func document(info *buildinfo.BuildInfo, program []byte) (*cyclonedx.BOM, error) {
	found, err := linked(info, program)
	if err != nil {
		return nil, err
	}
	var components []cyclonedx.Component
	// By whom a component is needed: the program, or the module that brings a C library.
	needs := map[string][]string{}
	add := func(by string, c cyclonedx.Component) {
		components = append(components, c)
		needs[by] = append(needs[by], c.BOMRef)
	}
	add(info.Path, standardLibrary(info.GoVersion))
	for _, m := range info.Deps {
		c, err := module(m)
		if err != nil {
			return nil, err
		}
		add(info.Path, c)
	}
	for _, l := range found {
		by := info.Path
		if l.from != zig {
			by = goPURL(l.from.name, l.from.version)
		}
		add(by, l.component())
	}
	var dependencies []cyclonedx.Dependency
	for _, by := range slices.Sorted(maps.Keys(needs)) {
		dependencies = append(dependencies, cyclonedx.Dependency{Ref: by, Dependencies: new(needs[by])})
	}

	sum := sha256.Sum256(program)
	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{Component: &cyclonedx.Component{
		BOMRef: info.Path,
		Type:   cyclonedx.ComponentTypeApplication,
		Name:   path.Base(info.Path),
		Hashes: &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}},
	}}
	bom.Components = &components
	bom.Dependencies = &dependencies
	return bom, nil
}

// standardLibrary describes Go's standard library under the name that Go's vulnerability database
// has for it.
func standardLibrary(goVersion string) cyclonedx.Component {
	// What may follow the version are experiments of the toolchain.
	version, _, _ := strings.Cut(strings.TrimPrefix(goVersion, "go"), " ")
	purl := goPURL("stdlib", version)
	return cyclonedx.Component{
		BOMRef:     purl,
		Type:       cyclonedx.ComponentTypeLibrary,
		Name:       "stdlib",
		Version:    version,
		Licenses:   licence("BSD-3-Clause"),
		CPE:        cpe("golang:go", version),
		PackageURL: purl,
	}
}

// module describes a Go module, or what takes its place.
func module(m *debug.Module) (cyclonedx.Component, error) {
	if m.Replace != nil {
		m = m.Replace
	}
	if m.Sum == "" {
		return cyclonedx.Component{}, fmt.Errorf("%s is built from a folder, so no scanner can know it", m.Path)
	}
	purl := goPURL(m.Path, m.Version)
	return cyclonedx.Component{
		BOMRef:     purl,
		Type:       cyclonedx.ComponentTypeLibrary,
		Name:       m.Path,
		Version:    m.Version,
		PackageURL: purl,
		// It is a hash of the hashes of the files. CycloneDX's own field is for a hash of one file.
		Properties: &[]cyclonedx.Property{{Name: "go.sum", Value: m.Sum}},
	}, nil
}

// component describes a C library.
func (l library) component() cyclonedx.Component {
	c := cyclonedx.Component{
		Type:       cyclonedx.ComponentTypeLibrary,
		Name:       l.name,
		Version:    l.version,
		Licenses:   licence(l.licence),
		PackageURL: "pkg:generic/" + l.name + "@" + l.version,
	}
	if l.repository != "" {
		c.PackageURL = "pkg:github/" + l.repository + "@v" + l.version
	}
	if l.product != "" {
		c.CPE = cpe(l.product, l.version)
	}
	c.BOMRef = c.PackageURL
	return c
}

// goPURL returns the package URL of a Go module. The path keeps its capital letters, because module
// paths with others are other modules.
func goPURL(name, version string) string {
	// A version may end in +incompatible.
	return "pkg:golang/" + name + "@" + url.QueryEscape(version)
}

// cpe returns the name of a version in the CPE dictionary. product is the vendor and the product.
func cpe(product, version string) string {
	return "cpe:2.3:a:" + product + ":" + version + ":*:*:*:*:*:*:*"
}

func licence(expression string) *cyclonedx.Licenses {
	return &cyclonedx.Licenses{{Expression: expression}}
}
