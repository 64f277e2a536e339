package auth_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/lag/auth"
)

const region = "eu-west-1"

// The credentials of each kind of environment sign as AWS' own signer does.
func TestMSKIAM(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte("projected"), 0o600); err != nil {
		t.Fatal(err)
	}
	session := awssdk.Credentials{AccessKeyID: "ASIA", SecretAccessKey: "of the role", SessionToken: "session+/="}
	expires := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	// It stands for the agent of EKS Pod Identity and for STS.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/agent" && r.Header.Get("Authorization") == "projected":
			_ = json.NewEncoder(w).Encode(map[string]string{"AccessKeyId": session.AccessKeyID,
				"SecretAccessKey": session.SecretAccessKey, "Token": session.SessionToken, "Expiration": expires})
		case r.FormValue("Action") == "AssumeRoleWithWebIdentity" && r.FormValue("WebIdentityToken") == "projected":
			fmt.Fprintf(w, "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"+
				"<AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken>"+
				"<Expiration>%s</Expiration></Credentials></AssumeRoleWithWebIdentityResult>"+
				"</AssumeRoleWithWebIdentityResponse>",
				session.AccessKeyID, session.SecretAccessKey, session.SessionToken, expires)
		default:
			http.Error(w, "forbidden", http.StatusForbidden)
		}
	}))
	t.Cleanup(server.Close)
	for _, tt := range []struct {
		name string
		vars map[string]string
		// signer is what the broker knows.
		signer awssdk.Credentials
		err    string
		code   error
	}{
		{
			name:   "variables",
			vars:   map[string]string{"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "right"},
			signer: awssdk.Credentials{AccessKeyID: "AKIA", SecretAccessKey: "right"},
		},
		{
			name: "web identity (IRSA)",
			vars: map[string]string{"AWS_ROLE_ARN": "arn:aws:iam::1:role/lag", "AWS_WEB_IDENTITY_TOKEN_FILE": file,
				"AWS_ENDPOINT_URL_STS": server.URL},
			signer: session,
		},
		{
			name: "EKS Pod Identity",
			vars: map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.URL + "/agent",
				"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": file},
			signer: session,
		},
		{
			name:   "a wrong secret",
			vars:   map[string]string{"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "wrong"},
			signer: awssdk.Credentials{AccessKeyID: "AKIA", SecretAccessKey: "right"},
			err:    "Access denied", code: kerr.SaslAuthenticationFailed,
		},
		{
			name: "nothing",
			err:  "find AWS credentials in the environment",
		},
		{
			name: "no region",
			vars: map[string]string{"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "right", "AWS_REGION": ""},
			err:  "set AWS_REGION",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
				"AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
				"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
				"AWS_ENDPOINT_URL_STS", "AWS_DEFAULT_REGION"} {
				t.Setenv(name, "")
			}
			t.Setenv("AWS_REGION", region)
			t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
			t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "none"))
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(dir, "none"))
			for name, value := range tt.vars {
				t.Setenv(name, value)
			}
			addr := startBroker(t, tt.signer)
			c := kafkaconfig.Client{Brokers: []string{addr}, Protocol: "sasl_plaintext", Mechanism: kafkaconfig.MSKIAM}
			if mistakes := c.ValidateAll(nil); mistakes != nil {
				t.Fatal(mistakes)
			}
			client, err := kgo.NewClient(append(c.Options(), auth.Options(c)...)...)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			err = client.Ping(ctx)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("the error is %v, want one with %q", err, tt.err)
			}
			if err == nil {
				return
			}
			if _, none := errors.AsType[*kafkaconfig.CredentialsError](err); none != (tt.code == nil) {
				t.Errorf("the error %v is a CredentialsError: %v", err, none)
			}
			if tt.code != nil && !errors.Is(err, tt.code) {
				t.Errorf("the error is %v, want %v", err, tt.code)
			}
		})
	}
}

// startBroker starts a server that speaks as much of Kafka's protocol as a client needs to
// authenticate, and knows one AWS user. It returns its address.
func startBroker(t *testing.T, user awssdk.Credentials) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for err := error(nil); err == nil; {
					err = serve(conn, user)
				}
			}()
		}
	}()
	return ln.Addr().String()
}

// serve responds to one request.
func serve(conn net.Conn, user awssdk.Credentials) error {
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	text := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(conn, text); err != nil {
		return err
	}
	reader := kbin.Reader{Src: text}
	key, version, correlation := reader.Int16(), reader.Int16(), reader.Int32()
	reader.NullableString()
	req := kmsg.RequestForKey(key)
	req.SetVersion(version)
	if req.IsFlexible() {
		kmsg.SkipTags(&reader)
	}
	if err := req.ReadFrom(reader.Src); err != nil {
		return err
	}
	resp := req.ResponseKind()
	switch resp := resp.(type) {
	case *kmsg.ApiVersionsResponse:
		for _, k := range []kmsg.Key{kmsg.ApiVersions, kmsg.SASLHandshake, kmsg.SASLAuthenticate, kmsg.Metadata} {
			v := kmsg.NewApiVersionsResponseApiKey()
			v.ApiKey, v.MaxVersion = k.Int16(), kmsg.RequestForKey(k.Int16()).MaxVersion()
			resp.ApiKeys = append(resp.ApiKeys, v)
		}
	case *kmsg.SASLHandshakeResponse:
		resp.SupportedMechanisms = []string{"AWS_MSK_IAM"}
	case *kmsg.SASLAuthenticateResponse:
		resp.SASLAuthBytes = []byte(`{"version":"2020_10_22","request-id":"1"}`)
		if err := check(req.(*kmsg.SASLAuthenticateRequest).SASLAuthBytes, user); err != nil {
			resp.ErrorCode, resp.ErrorMessage = kerr.SaslAuthenticationFailed.Code, new("Access denied: "+err.Error())
		}
	}
	out := kbin.AppendInt32(nil, correlation)
	if resp.IsFlexible() && key != kmsg.ApiVersions.Int16() {
		out = append(out, 0)
	}
	out = resp.AppendTo(out)
	_, err := conn.Write(append(kbin.AppendInt32(nil, int32(len(out))), out...))
	return err
}

// check checks what a client sends as AWS' brokers do: its form, and that AWS' own signer signs the
// same.
func check(payload []byte, user awssdk.Credentials) error {
	var got map[string]string
	if err := json.Unmarshal(payload, &got); err != nil {
		return err
	}
	signed, err := time.Parse("20060102T150405Z", got["x-amz-date"])
	if err != nil || time.Since(signed).Abs() > time.Minute {
		return fmt.Errorf("x-amz-date is %q", got["x-amz-date"])
	}
	request, err := http.NewRequest(http.MethodGet,
		"https://"+got["host"]+"/?Action=kafka-cluster%3AConnect&X-Amz-Expires=300", nil)
	if err != nil {
		return err
	}
	const emptyBody = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	right, _, err := v4.NewSigner().PresignHTTP(
		context.Background(), user, request, emptyBody, "kafka-cluster", region, signed)
	if err != nil {
		return err
	}
	u, err := url.Parse(right)
	if err != nil {
		return err
	}
	want := map[string]string{"version": "2020_10_22", "host": "127.0.0.1", "user-agent": got["user-agent"]}
	for key, values := range u.Query() {
		want[strings.ToLower(key)] = values[0]
	}
	if got["user-agent"] == "" || fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}
