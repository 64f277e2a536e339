package auth

import (
	"context"
	"fmt"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/aws"

	"ordersystem.dev/services/internal/kafkaconfig"
)

// msk is AWS_MSK_IAM. It signs with the credentials of the process's environment.
type msk struct{ credentials cached[awssdk.Credentials] }

func newMSK() *msk { return &msk{cached[awssdk.Credentials]{fetch: fetchAWS}} }

// Name is part of sasl.Mechanism.
func (m *msk) Name() string { return kafkaconfig.MSKIAM }

// Authenticate is part of sasl.Mechanism. franz-go calls it for each connection, and again when the
// session ends.
func (m *msk) Authenticate(ctx context.Context, host string) (sasl.Session, []byte, error) {
	c, err := m.credentials.get(ctx)
	if err != nil {
		return nil, nil, &kafkaconfig.CredentialsError{Err: err}
	}
	signer := aws.Auth{AccessKey: c.AccessKeyID, SecretKey: c.SecretAccessKey, SessionToken: c.SessionToken}
	session, first, err := signer.AsManagedStreamingIAMMechanism().Authenticate(ctx, host)
	if err != nil {
		return nil, nil, &kafkaconfig.CredentialsError{Err: fmt.Errorf("sign for AWS: %w: set AWS_REGION", err)}
	}
	return session, first, nil
}

// fetchAWS returns the first credentials that the environment has: variables, shared files, a web
// identity (IRSA), a container's (EKS Pod Identity, ECS) or an instance's. It looks at the
// environment again each time, because a file may have been renewed.
func fetchAWS(ctx context.Context) (c awssdk.Credentials, expires time.Time, err error) {
	cfg, err := config.LoadDefaultConfig(ctx)
	if err == nil {
		c, err = cfg.Credentials.Retrieve(ctx)
	}
	if err != nil {
		return awssdk.Credentials{}, time.Time{}, fmt.Errorf("find AWS credentials in the environment: %w: set "+
			"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod or the instance a role", err)
	}
	// Without an expiry it is the zero time.
	return c, c.Expires, nil
}
