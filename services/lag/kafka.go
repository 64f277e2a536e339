package lag

import (
	"errors"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/lag/auth"
)

// clientOptions returns the options of a client that gives up a request after timeout, retries
// included. Each connection reads the TLS files and the credentials again, because they may change
// at any time, as when Strimzi renews a certificate. An error names everything that is wrong.
func clientOptions(k kafkaconfig.Client, timeout time.Duration) ([]kgo.Opt, error) {
	var errs []error
	for _, invalid := range k.ValidateAll(nil) {
		errs = append(errs, invalid)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	// Version 10 of OffsetFetch names topics by ID only, and franz-go looks up the names without an
	// end.
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(9, 9)
	opts := []kgo.Opt{
		kgo.MaxVersions(versions),
		kgo.RequestTimeoutOverhead(timeout),
		kgo.RetryTimeout(timeout),
		kgo.RetryBackoffFn(retryBackoff),
		// Each poll reads metadata, and all its requests use that.
		kgo.MetadataMinAge(timeout),
		kgo.DisableClientMetrics(),
	}
	return slices.Concat(opts, k.Options(), auth.Options(k)), nil
}

// retryBackoff returns the wait before a retry: 100 ms more each time, and a second at most.
func retryBackoff(tries int) time.Duration {
	return min(time.Duration(tries)*100*time.Millisecond, time.Second)
}
