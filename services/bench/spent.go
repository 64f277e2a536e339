package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ordersystem.dev/services/bench/stats"
)

// clockTick is the unit of times in /proc: USER_HZ is 100 on every Linux that Go supports.
const clockTick = 10 * time.Millisecond

// spent is the processor time of a measurement, or since the start of the machine.
type spent struct {
	// services, kafka, postgres and load are the processes under test, the servers and this process.
	services, kafka, postgres, load time.Duration
	// all is that of all processors, and idle what nobody used of it.
	all, idle time.Duration
}

// spentSoFar reads the processor times of everything that takes part in a measurement.
func (b *bench) spentSoFar(services []*service) spent {
	now := spent{kafka: cpuOf(b.kafka), postgres: cpuOf(b.postgres), load: stats.OwnCPU()}
	for _, s := range services {
		now.services += s.cpu()
	}
	// user, nice, system, idle, iowait, irq, softirq and steal of all processors together.
	if text, err := os.ReadFile("/proc/stat"); err == nil {
		line, _, _ := strings.Cut(string(text), "\n")
		for i, field := range strings.Fields(line)[1:9] {
			ticks, _ := strconv.Atoi(field)
			now.all += time.Duration(ticks) * clockTick
			if i == 3 || i == 4 {
				now.idle += time.Duration(ticks) * clockTick
			}
		}
	}
	return now
}

// since returns what was spent after an earlier reading.
func (s spent) since(before spent) spent {
	return spent{
		services: s.services - before.services, kafka: s.kafka - before.kafka, postgres: s.postgres - before.postgres,
		load: s.load - before.load, all: s.all - before.all, idle: s.idle - before.idle,
	}
}

// printSpent prints where the processor time went while the orders of some results were accepted.
func printSpent(w io.Writer, note string, results ...result) {
	fmt.Fprintf(w, "\n%s\n\n", note)
	fmt.Fprintln(w, "| µs per order | the services | Kafka | PostgreSQL | the load | others | idle |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- | --- |")
	for _, r := range results {
		cells := []string{r.what}
		for _, part := range []func(spent) time.Duration{
			func(s spent) time.Duration { return s.services },
			func(s spent) time.Duration { return s.kafka },
			func(s spent) time.Duration { return s.postgres },
			func(s spent) time.Duration { return s.load },
			func(s spent) time.Duration { return s.all - s.idle - s.services - s.kafka - s.postgres - s.load },
			func(s spent) time.Duration { return s.idle },
		} {
			var values []float64
			for _, c := range r.created {
				values = append(values, stats.PerOrder(part(c.spent), c.orders))
			}
			cells = append(cells, number(stats.SpreadOf(values).Median))
		}
		fmt.Fprintln(w, "| "+strings.Join(cells, " | ")+" |")
	}
}

// cpuOf returns the processor time of a process and of its children, of which PostgreSQL has one for each
// connection: user and system. It returns 0 without /proc.
func cpuOf(pid int) time.Duration {
	all := cpuIn(fmt.Sprintf("/proc/%d/stat", pid), nil)
	others, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, other := range others {
		all += cpuIn(other, []byte(strconv.Itoa(pid)))
	}
	return all
}

// cpuIn returns the processor time in a file of /proc, with that of children that have ended. It is 0 if parent
// is not nil and the process has another one.
func cpuIn(file string, parent []byte) time.Duration {
	stat, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	// The name before the fields may contain blanks.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if parent != nil && !bytes.Equal(fields[1], parent) {
		return 0
	}
	ticks := 0
	for _, field := range fields[11:15] {
		n, _ := strconv.Atoi(string(field))
		ticks += n
	}
	return time.Duration(ticks) * clockTick
}
