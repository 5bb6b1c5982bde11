"""A certificate authority in four calls: what `transship pki` and the lab use to name hosts.

Every agent proves its host's name with a certificate of one private CA, as a client and as a server.
Keys are EC P-256, written as unencrypted PKCS #8: the file's mode (0600) protects them, not a pass phrase
that would have to lie beside them. Nothing here reads or writes files.
"""

import ipaddress
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Two hosts' clocks need not agree to the second when the first certificate is used.
_CLOCK_SKEW = timedelta(minutes=5)


def make_ca(common_name: str, days: int) -> tuple[bytes, bytes]:
    """Make a self-signed authority that may sign host certificates but no further authorities.

    Returns the certificate and its private key, both PEM.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    builder = _builder(name, name, key.public_key(), days).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    certificate = builder.add_extension(_key_usage(ca=True), critical=True).sign(key, hashes.SHA256())
    return _pem(certificate), _key_pem(key)


def issue(
    ca_cert: bytes,
    ca_key: bytes,
    common_name: str,
    dns: Iterable[str],
    ips: Iterable[str],
    days: int,
    *,
    server: bool = True,
    client: bool = True,
) -> tuple[bytes, bytes]:
    """Sign a certificate for one host, valid under the DNS names and addresses given.

    `server` and `client` choose what it may be used for. Returns certificate and private key, both PEM.
    """
    authority = x509.load_pem_x509_certificate(ca_cert)
    signer = serialization.load_pem_private_key(ca_key, password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError("the authority's key is not an EC key")
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns]
    names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
    builder = (
        _builder(_name(common_name), authority.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_purposes(server=server, client=client)), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_issuer_id(authority), critical=False)
    )
    return _pem(builder.sign(signer, hashes.SHA256())), _key_pem(key)


def common_name(cert: bytes) -> str:
    """Tell whose certificate this is."""
    [attribute] = x509.load_pem_x509_certificate(cert).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attribute.value)


def expiry(certificates: bytes) -> datetime:
    """When the first of the certificates in a PEM file ends.

    Raises:
        ValueError: there is none in it.

    """
    return min(one.not_valid_after_utc for one in x509.load_pem_x509_certificates(certificates))


def ends(files: Iterable[str]) -> list[str]:
    """For each PEM file when its first certificate ends (ISO 8601), or after a `!` what is wrong with it."""
    said = []
    for file in files:
        try:
            said.append(expiry(Path(file).read_bytes()).isoformat())
        except (OSError, ValueError) as error:
            said.append("!" + " ".join(str(error).split()))
    return said


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _issuer_id(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    subject_id = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_id.value)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _purposes(*, server: bool, client: bool) -> list[x509.ObjectIdentifier]:
    purposes = []
    if server:
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
    if client:
        purposes.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    return purposes


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


if __name__ == "__main__":
    print(*ends(sys.argv[1:]), sep="\n")
