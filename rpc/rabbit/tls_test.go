package rabbit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// testCA makes certificates for one test.
type testCA struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newCA(t testing.TB) *testCA {
	t.Helper()
	ca := &testCA{dir: t.TempDir()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca.key = key
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	ca.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	ca.file = filepath.Join(ca.dir, "ca.pem")
	writePEM(t, ca.file, "CERTIFICATE", der)
	return ca
}

// issue writes <name>.crt and <name>.key for a DNS name, into a directory of the test.
func (ca *testCA) issue(t testing.TB, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	dir := t.TempDir() // parallel tests issue the same name
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "PRIVATE KEY", private)
	return certFile, keyFile
}

func writePEM(t testing.TB, file, kind string, der []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// serverConfig is a broker's side that demands a client certificate if demand is set.
func (ca *testCA) serverConfig(t testing.TB, name string, demand bool) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(ca.issue(t, name))
	require.NoError(t, err)
	c := &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	c.ClientCAs.AddCert(ca.cert)
	if demand {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c
}

func TestTLSVerification(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	clientCert, clientKey := ca.issue(t, "client.example")
	other := newCA(t)
	tests := map[string]struct {
		options    TLS
		serverName string
		demand     bool
		fault      string
		sni        string
	}{
		"chain and name":       {options: TLS{CAFile: ca.file, VerifyHostname: true}, serverName: "broker.example", sni: "broker.example"},
		"wrong name":           {options: TLS{CAFile: ca.file, VerifyHostname: true}, serverName: "other.example", fault: "broker.example", sni: "other.example"},
		"wrong name unchecked": {options: TLS{CAFile: ca.file}, serverName: "other.example"},
		"wrong chain":          {options: TLS{CAFile: other.file}, serverName: "broker.example", fault: "verify broker certificate"},
		"system trust store":   {options: TLS{VerifyHostname: true}, serverName: "broker.example", fault: "verify broker certificate"},
		"client certificate":   {options: TLS{CAFile: ca.file, CertFile: clientCert, KeyFile: clientKey, Version: "TLSv1_2"}, demand: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, err := tt.options.config(tt.serverName)
			require.NoError(t, err)
			near, far := tcpPair(t)
			server := tls.Server(far, ca.serverConfig(t, "broker.example", tt.demand))
			accepted := make(chan error, 1)
			go func() { accepted <- server.HandshakeContext(t.Context()) }()
			client := tls.Client(near, config)
			err = client.HandshakeContext(t.Context())
			if tt.fault != "" {
				require.ErrorContains(t, err, tt.fault)
				_ = near.Close()
				<-accepted
				return
			}
			require.NoError(t, err)
			require.NoError(t, <-accepted)
			require.Equal(t, tt.sni, server.ConnectionState().ServerName)
			require.Equal(t, tt.demand, len(server.ConnectionState().PeerCertificates) == 1)
			if tt.options.Version == "TLSv1_2" {
				require.Equal(t, uint16(tls.VersionTLS12), client.ConnectionState().Version)
			}
		})
	}
}

// tcpPair gives both ends of a TCP connection.
func tcpPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	listener := listen(t)
	near = dial(t, listener.Addr().String())
	far, err := listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _, _, _ = near.Close(), far.Close(), listener.Close() })
	return near, far
}

func TestTLSFileErrors(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	for want, o := range map[string]TLS{
		"read ssl_ca_file: ":   {CAFile: "/does/not/exist"},
		"no certificate in it": {CAFile: empty},
		"read ssl_cert_file":   {CertFile: empty, KeyFile: empty},
		"ssl_version":          {Version: "SSLv2"},
	} {
		_, err := o.config("x")
		require.ErrorContains(t, err, want)
	}
}
