package rabbit

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// versions gives the range of protocol versions that ssl_version allows.
func (t TLS) versions() ([2]uint16, error) {
	switch t.Version {
	case "", "SSLv23", "TLS": // whatever both sides can do
		return [2]uint16{tls.VersionTLS12, 0}, nil
	case "TLSv1":
		return [2]uint16{tls.VersionTLS10, tls.VersionTLS10}, nil
	case "TLSv1_1":
		return [2]uint16{tls.VersionTLS11, tls.VersionTLS11}, nil
	case "TLSv1_2":
		return [2]uint16{tls.VersionTLS12, tls.VersionTLS12}, nil
	case "TLSv1_3":
		return [2]uint16{tls.VersionTLS13, tls.VersionTLS13}, nil
	default:
		return [2]uint16{}, fmt.Errorf("ssl_version %q: want TLSv1, TLSv1_1, TLSv1_2, TLSv1_3, SSLv23 or nothing", t.Version)
	}
}

// config builds the client side for one broker. The files are read at each dial,
// so that renewed certificates are used without a restart.
//
// As in Python the chain is always verified, the name only if a CA file is given
// and VerifyHostname is on; a server name is sent only then.
func (t TLS) config(serverName string) (*tls.Config, error) {
	versions, err := t.versions()
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: versions[0], MaxVersion: versions[1]} // the operator chose the version
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read ssl_ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read ssl_ca_file %s: no certificate in it", t.CAFile)
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read ssl_cert_file and ssl_key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if t.VerifyHostname && t.CAFile != "" {
		c.ServerName = serverName
		return c, nil
	}
	roots := c.RootCAs
	c.InsecureSkipVerify = true // the chain is verified below, only the name is not
	c.VerifyConnection = func(state tls.ConnectionState) error { return verifyChain(state, roots) }
	return c, nil
}

// verifyChain verifies the peer's certificate against roots (nil: the system's) without its name.
func verifyChain(state tls.ConnectionState, roots *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("broker sent no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		intermediates.AddCert(cert)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates})
	if err != nil {
		return fmt.Errorf("verify broker certificate: %w", err)
	}
	return nil
}
