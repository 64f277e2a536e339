package broker

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/pierrec/lz4/v4"
)

func lz4Frame(t testing.TB, in []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := lz4.NewWriter(&out)
	if _, err := w.Write(in); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestLibrdkafkaReadsLZ4ThatGrowsLittle(t *testing.T) {
	t.Parallel()
	random := func(n int) []byte {
		b := make([]byte, n)
		rand.NewChaCha8([32]byte{}).Read(b)
		return b
	}
	// repeat returns n times the same random bytes.
	repeat := func(n int) []byte { return bytes.Repeat(random(1000), n) }
	for name, test := range map[string]struct {
		in      []byte
		refused bool
	}{
		"nothing":               {nil, false},
		"one byte":              {[]byte("a"), false},
		"1 MB, not smaller":     {random(1 << 20), false},
		"30 kB, 30 times":       {repeat(31), false},
		"8 MiB, not smaller":    {random(8 << 20), false},
		"more than 8 MiB":       {random(8<<20 + 1), true},
		"100 kB, 100 times":     {repeat(100), true},
		"64 KiB, 255 times":     {make([]byte, 64<<10), true},
		"several blocks, zeros": {make([]byte, 20<<20), true},
	} {
		frame := lz4Frame(t, test.in)
		if got := refusesLZ4(frame); got != test.refused {
			t.Errorf("%s, %d bytes from %d: refused %v, want %v", name, len(test.in), len(frame), got, test.refused)
		}
		for n := range min(len(frame), 2000) {
			// What is cut or changed must not be read beyond its end.
			refusesLZ4(bytes.Clone(frame[:n+1]))
			changed := bytes.Clone(frame[:min(len(frame), 3000)])
			changed[n] ^= 0xff
			refusesLZ4(changed)
		}
	}
}
