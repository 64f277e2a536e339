// Command sbom prints the software bill of materials of a program of this repository, as CycloneDX
// in JSON. Scanners find the Go modules of a program by themselves. They cannot see the C libraries
// that are linked into it, so sbom names those too, with their versions. The same program gives the
// same document.
package main

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/CycloneDX/cyclonedx-go"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

// run prints the document of the program whose path is the only argument.
func run(args []string, stdout io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: sbom PROGRAM")
	}
	program, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("read the build information of %s: %w", args[0], err)
	}
	bom, err := document(info, program)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	out := cyclonedx.NewBOMEncoder(stdout, cyclonedx.BOMFileFormatJSON).SetPretty(true)
	return out.EncodeVersion(bom, cyclonedx.SpecVersion1_6)
}
