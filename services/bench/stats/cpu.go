package stats

import (
	"math"
	"syscall"
	"time"
)

// OwnCPU returns the processor time of this process, in which the bare limits run. It returns 0 if
// the time cannot be read.
func OwnCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// PerOrder returns processor time in µs for each of n orders. It returns NaN if the time could not
// be read.
func PerOrder(cpu time.Duration, n int) float64 {
	if cpu <= 0 {
		return math.NaN()
	}
	return float64(cpu.Nanoseconds()) / 1000 / float64(n)
}

// Rate returns the sample of n orders in a time, with the processor time that they took.
func Rate(n int, took, cpu time.Duration) Sample {
	return Sample{Value: float64(n) / took.Seconds(), CPU: PerOrder(cpu, n)}
}

// Milliseconds returns a duration as a number.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
