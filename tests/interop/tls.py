"""Certificates and keys for TLS, made by certtool and psktool (package gnutls-bin), and servers that use them."""

import contextlib
import subprocess

from conftest import SNAPCTL, sh

PSK_USER = "alice"


def certtool(*argv):
    sh("certtool", *argv)


class Authority:
    """A CA in a directory, and what it signs."""

    def __init__(self, path):
        self.path = path
        path.mkdir()
        self.key, self.certificate = path / "ca-key.pem", path / "ca-cert.pem"
        self.make_key(self.key)
        template = self.template("ca", "cn = Test CA", "ca", "cert_signing_key", "crl_signing_key")
        certtool("--generate-self-signed", "--load-privkey", self.key, "--template", template,
                 "--outfile", self.certificate)

    @staticmethod
    def make_key(path):
        certtool("--generate-privkey", "--key-type", "ecdsa", "--curve", "secp256r1", "--outfile", path)

    def template(self, name, *lines):
        path = self.path / f"{name}.template"
        path.write_text("\n".join([*lines, "expiration_days = 30", ""]))
        return path

    def sign(self, folder, role, *lines):
        """`folder` gets a certificate and key for `role`, server or client, and the CA's certificate."""
        folder.mkdir(exist_ok=True)
        key, certificate = folder / f"{role}-key.pem", folder / f"{role}-cert.pem"
        self.make_key(key)
        template = self.template(folder.name + role, f"cn = {role}", "signing_key", f"tls_www_{role}", *lines)
        certtool("--generate-certificate", "--load-ca-certificate", self.certificate, "--load-ca-privkey", self.key,
                 "--load-privkey", key, "--template", template, "--outfile", certificate)
        (folder / "ca-cert.pem").write_bytes(self.certificate.read_bytes())
        return folder

    def server(self, folder):
        return self.sign(folder, "server", "dns_name = localhost", "ip_address = 127.0.0.1")

    def client(self, folder):
        return self.sign(folder, "client")

    def revoke(self, certificate, crl):
        template = self.template("crl", "crl_next_update = 30", "crl_number = 1")
        certtool("--generate-crl", "--load-ca-certificate", self.certificate, "--load-ca-privkey", self.key,
                 "--load-certificate", certificate, "--template", template, "--outfile", crl)


def psk_file(path, user=PSK_USER):
    sh("psktool", "-u", user, "-p", path)
    path.chmod(0o600)
    return path


class Running:
    """`export vol` in the foreground; what it logged is in `log` once it has stopped."""

    def __init__(self, *options):
        self.log = None
        self.process = subprocess.Popen([SNAPCTL, "export", "vol", *[str(o) for o in options]], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.uri = self.process.stdout.readline().strip()
        assert self.uri, self.process.communicate()[1]

    def stop(self):
        if self.log is None:
            self.process.terminate()
            _, self.log = self.process.communicate(timeout=30)
            assert self.process.returncode == 0, self.log

    @property
    def port(self):
        return int(self.uri.split(":")[2].split("/")[0])

    def with_certificates(self, folder):
        """The URI for libnbd, with the client's certificates in `folder`."""
        return self.uri + ("&" if "?" in self.uri else "?") + f"tls-certificates={folder}"

    def with_psk(self, path, user=PSK_USER):
        scheme, rest = self.uri.split("://")
        return f"{scheme}://{user}@{rest}" + ("&" if "?" in rest else "?") + f"tls-psk-file={path}"


@contextlib.contextmanager
def export(*options):
    running = Running(*options)
    try:
        yield running
    finally:
        running.stop()


def fails(*argv, env=None):
    """A client that must not get through; gives what it said."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, timeout=60, check=False, env=env)
    assert done.returncode != 0, f"{argv} got through"
    return (done.stdout + done.stderr).decode(errors="replace")
