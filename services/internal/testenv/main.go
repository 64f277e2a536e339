package testenv

import (
	"os"
	"testing"
)

// inMain is set while Main runs, which ends the servers that tests share.
var inMain bool

// Main runs a package's tests and ends the servers that they share.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is [Main] for a package that has more to do before its tests exit with the code.
func Run(m *testing.M) (code int) {
	inMain = true
	code = m.Run()
	if k := sharedKafka.k; k != nil {
		k.Kill()
	}
	if s := sharedPostgres.s; s != nil {
		s.Kill()
	}
	os.RemoveAll(sharedKafka.dir)
	os.RemoveAll(sharedPostgres.dir)
	return code
}
