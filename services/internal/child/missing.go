package child

import "fmt"

// A MissingError reports a program that must be installed before a server can run on this machine.
type MissingError struct {
	Program string
	// Install names what to install.
	Install string
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not installed: install %s", e.Program, e.Install)
}
