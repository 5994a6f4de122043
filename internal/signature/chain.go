package signature

import (
	"bytes"
	"crypto"
	"crypto/dsa" //nolint:staticcheck // a key type of Nova's; nothing is signed with it here
	"crypto/rsa"
	"crypto/x509"
	"time"
)

// Trusted is a certificate that the user, or the operator, trusts.
type Trusted struct {
	ID          string
	Certificate *x509.Certificate
}

// Validate finds the chain from a certificate to a self-signed one, every link of it among the trusted certificates
// (cursive/certificate_utils.py:verify_certificate). The certificate itself need not be trusted, unless it is self-signed.
// Trusted certificates that are out of date, or that may not sign others, count for nothing. Nova's words for the Web's kind of
// checks (names, purposes, revocation) have no counterpart: certificates of images have no names to compare, and
// cursive asks nobody about revocation.
func Validate(certificate *x509.Certificate, trusted []Trusted, now time.Time) error {
	if !inTime(certificate, now) {
		return refuse("The certificate is outside its valid date range.")
	}
	var signers []Trusted
	for _, t := range trusted {
		if inTime(t.Certificate, now) && maySign(t.Certificate) {
			signers = append(signers, t)
		}
	}
	chain := []Trusted{{Certificate: certificate}} // from the image's certificate up
	for {
		last := chain[len(chain)-1]
		issuer, self := findIssuer(last.Certificate, signers, chain)
		if self {
			return checkLengths(chain)
		}
		if issuer == nil {
			return refuse("Certificate chain building failed. Could not locate the signing certificate for %s in the set of trusted certificates.", last.name())
		}
		chain = append(chain, *issuer)
	}
}

func (t Trusted) name() string {
	if t.ID == "" {
		return "the base certificate"
	}
	return "certificate '" + t.ID + "'"
}

func inTime(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && !now.After(c.NotAfter)
}

// maySign wants both extensions: a certificate of version 1 is none of an authority.
func maySign(c *x509.Certificate) bool {
	return c.BasicConstraintsValid && c.IsCA && c.KeyUsage&x509.KeyUsageCertSign != 0 && len(c.UnhandledCriticalExtensions) == 0
}

// findIssuer finds who signed a certificate; self: it is trusted and has signed itself. One that is in the chain
// already is not taken again, or two that signed each other would never end.
func findIssuer(c *x509.Certificate, signers, chain []Trusted) (issuer *Trusted, self bool) {
	for i := range signers {
		candidate := signers[i].Certificate
		if !bytes.Equal(candidate.RawSubject, c.RawIssuer) || !hasSigned(candidate, c) {
			continue
		}
		if candidate.Equal(c) {
			return nil, true
		}
		if issuer == nil && !contains(chain, candidate) {
			issuer = &signers[i]
		}
	}
	return issuer, false
}

func contains(chain []Trusted, c *x509.Certificate) bool {
	for _, link := range chain {
		if link.Certificate.Equal(c) {
			return true
		}
	}
	return false
}

// hasSigned compares the signature of a certificate. Those over MD5 and SHA-1 prove nothing any more; cursive takes them.
func hasSigned(parent, child *x509.Certificate) bool {
	switch child.SignatureAlgorithm {
	case x509.UnknownSignatureAlgorithm, x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return false
	case x509.DSAWithSHA256:
		if _, ok := parent.PublicKey.(*dsa.PublicKey); !ok {
			return false
		}
		hash := crypto.SHA256.New()
		_, _ = hash.Write(child.RawTBSCertificate)
		return verifyDSA(parent.PublicKey, crypto.SHA256, hash.Sum(nil), child.Signature) == nil
	default:
		if key, ok := parent.PublicKey.(*rsa.PublicKey); ok && checkRSA(key) != nil {
			return false
		}
		return parent.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature) == nil
	}
}

// checkLengths wants every authority of the chain to allow as many others below it as there are.
func checkLengths(chain []Trusted) error {
	for i, link := range chain[1:] { // i authorities are between this one and the image's certificate
		if limit := link.Certificate.MaxPathLen; limit >= 0 && limit < i {
			return refuse("Certificate validation failed. The signing certificate '%s' is not configured to support certificate chains of sufficient length.", link.ID)
		}
	}
	return nil
}
