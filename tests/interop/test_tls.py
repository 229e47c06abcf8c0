"""TLS with other programs' clients, by certificates and by keys that both sides know (PSK): who gets in, and who does
not. Packages: gnutls-bin, libnbd-bin, qemu-utils, nbd-client, fio."""

import random
import shutil
import socket
import ssl
import subprocess

import pytest

from conftest import MIB, SNAPCTL, sh
from tls import PSK_USER, Authority, export, fails, psk_file

SIZE = 4 * MIB
OPTION_STARTTLS = b"IHAVEOPT" + bytes([0, 0, 0, 5, 0, 0, 0, 0])


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(2).randbytes(SIZE))
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A directory with what a server and its clients have: server/, client/, keys.psk; a client of another CA in
    stranger/, and one with the right CA but no certificate in nobody/."""
    path = tmp_path_factory.mktemp("keys")
    ours = Authority(path / "ca")
    ours.server(path / "server")
    ours.client(path / "client")
    Authority(path / "other-ca").client(path / "stranger")
    (path / "nobody").mkdir()
    for folder in ("stranger", "nobody"):
        shutil.copy(ours.certificate, path / folder / "ca-cert.pem")
    ours.client(path / "revoked")
    shutil.copytree(path / "server", path / "server-crl")
    ours.revoke(path / "revoked" / "client-cert.pem", path / "server-crl" / "ca-crl.pem")
    psk_file(path / "keys.psk")
    (path / "wrong").mkdir()
    psk_file(path / "wrong" / "keys.psk")
    return path


@pytest.fixture
def server(volume, keys):
    """Demands client certificates, on TCP."""
    with export("--tcp", "127.0.0.1:0", "--tls-certificates", keys / "server") as running:
        yield running


@pytest.fixture
def psk_server(volume, keys):
    with export("--tcp", "127.0.0.1:0", "--tls-psk", keys / "keys.psk") as running:
        yield running


def qemu_image(server, credentials):
    return ("--object", f"{credentials},id=tls0,endpoint=client", "--image-opts",
            f"driver=nbd,host=127.0.0.1,port={server.port},export=vol,tls-creds=tls0")


# ---- Who gets in


def test_the_printed_uri_says_tls(volume, keys, tmp_path):
    with export("--tcp", "127.0.0.1:0", "--tls-certificates", keys / "server") as running:
        assert running.uri.startswith("nbds://127.0.0.1:")
    with export("--socket", tmp_path / "s", "--tls-psk", keys / "keys.psk") as running:
        assert running.uri == f"nbds+unix:///vol?socket={tmp_path / 's'}"
        assert int(sh("nbdinfo", "--size", running.with_psk(keys / "keys.psk"))) == SIZE


def test_nbdinfo_and_nbdcopy_connect_with_a_certificate(server, keys, disk, tmp_path):
    uri = server.with_certificates(keys / "client")
    assert '"TLS": true' in sh("nbdinfo", "--json", uri)
    sh("nbdcopy", "--connections=4", uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()


def test_nbdinfo_and_nbdcopy_connect_with_a_key(psk_server, keys, disk, tmp_path):
    uri = psk_server.with_psk(keys / "keys.psk")
    assert '"TLS": true' in sh("nbdinfo", "--json", uri)
    changed = disk.read_bytes()[::-1]
    (tmp_path / "changed").write_bytes(changed)
    sh("nbdcopy", "--flush", tmp_path / "changed", uri)
    sh("nbdcopy", "--connections=4", uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == changed


def test_qemu_img_converts_with_a_certificate(server, keys, disk, tmp_path):
    sh("qemu-img", "convert", *qemu_image(server, f"tls-creds-x509,dir={keys / 'client'}"), tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == disk.read_bytes()


def test_qemu_img_converts_with_a_key(psk_server, keys, disk, tmp_path):
    sh("qemu-img", "convert", *qemu_image(psk_server, f"tls-creds-psk,dir={keys},username={PSK_USER}"),
       tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == disk.read_bytes()


def test_nbd_client_lists_with_a_certificate(server, keys):
    client = keys / "client"
    out = sh("nbd-client", "-l", "localhost", server.port, "-certfile", client / "client-cert.pem", "-keyfile",
             client / "client-key.pem", "-cacertfile", client / "ca-cert.pem", "-tlshostname", "localhost")
    assert "vol: volume vol" in out


def test_fio_verifies_what_it_wrote_with_a_certificate(server, keys, tmp_path):
    # Its engine takes no file names in a URI: libnbd finds the certificates of whoever is not root at home.
    shutil.copytree(keys / "client", tmp_path / ".pki/libnbd")
    sh("env", f"HOME={tmp_path}", "unshare", "--user", "fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri}",
       "--rw=randwrite", "--bsrange=512-64k", "--iodepth=16", f"--size={SIZE}", "--verify=crc32c", "--verify_fatal=1",
       "--fsync=32", "--verify_state_save=0", f"--output={tmp_path / 'fio.out'}")


def test_allowed_takes_clients_with_and_without_tls(volume, keys, tmp_path):
    with export("--socket", tmp_path / "s", "--tls-psk", keys / "keys.psk", "--tls", "allowed") as running:
        assert '"TLS": true' in sh("nbdinfo", "--json", running.with_psk(keys / "keys.psk"))
        assert '"TLS": false' in sh("nbdinfo", "--json", running.uri.replace("nbds", "nbd"))


def test_without_verification_a_client_needs_no_certificate(volume, keys):
    with export("--tcp", "127.0.0.1:0", "--tls-certificates", keys / "server", "--tls-verify-peer", "off") as running:
        assert int(sh("nbdinfo", "--size", running.with_certificates(keys / "nobody"))) == SIZE


# ---- Who does not


def test_a_client_of_another_ca_is_refused(server, keys):
    fails("nbdinfo", server.with_certificates(keys / "stranger"))
    fails("qemu-img", "info", *qemu_image(server, f"tls-creds-x509,dir={keys / 'stranger'}"))
    server.stop()
    assert "the client's certificate: The certificate is NOT trusted" in server.log


def test_a_client_without_a_certificate_is_refused(server, keys):
    fails("nbdinfo", server.with_certificates(keys / "nobody"))
    server.stop()
    assert "TLS handshake: Certificate is required" in server.log


def test_a_certificate_for_servers_is_none_for_clients(server, keys, tmp_path):
    shutil.copytree(keys / "server", tmp_path / "posing")
    for kind in ("cert", "key"):
        (tmp_path / f"posing/server-{kind}.pem").rename(tmp_path / f"posing/client-{kind}.pem")
    fails("nbdinfo", server.with_certificates(tmp_path / "posing"))


def test_a_revoked_certificate_is_refused(volume, keys):
    with export("--tcp", "127.0.0.1:0", "--tls-certificates", keys / "server-crl") as running:
        fails("nbdinfo", running.with_certificates(keys / "revoked"))
        assert int(sh("nbdinfo", "--size", running.with_certificates(keys / "client"))) == SIZE


def test_a_wrong_key_or_name_is_refused(psk_server, keys):
    fails("nbdinfo", psk_server.with_psk(keys / "wrong/keys.psk"))
    psk_file(keys / "mallory.psk", "mallory")
    fails("nbdinfo", psk_server.with_psk(keys / "mallory.psk", "mallory"))
    assert int(sh("nbdinfo", "--size", psk_server.with_psk(keys / "keys.psk"))) == SIZE


def test_plaintext_is_refused_where_tls_is_required(server):
    plain = server.uri.replace("nbds", "nbd")
    assert "TLS" in fails("nbdinfo", plain)
    fails("qemu-img", "info", plain)
    fails("nbd-client", "-l", "localhost", server.port)


@pytest.mark.parametrize("version, taken", [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True),
                                            (ssl.TLSVersion.TLSv1_3, True)])
def test_no_tls_older_than_1_2_is_spoken(server, keys, version, taken):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")  # OpenSSL itself would refuse
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(keys / "client/ca-cert.pem")
    context.load_cert_chain(keys / "client/client-cert.pem", keys / "client/client-key.pem")
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        assert raw.recv(18).startswith(b"NBDMAGIC")
        raw.sendall(bytes([0, 0, 0, 3]) + OPTION_STARTTLS)
        assert raw.recv(20)[12:16] == bytes([0, 0, 0, 1])  # ACK
        if not taken:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(raw, server_hostname="localhost")
            server.stop()
            assert "unsupported version" in server.log
            return
        with context.wrap_socket(raw, server_hostname="localhost") as tls:
            tls.sendall(b"IHAVEOPT" + bytes([0, 0, 0, 2, 0, 0, 0, 0]))  # ABORT
            assert tls.recv(20)[12:16] == bytes([0, 0, 0, 1])


# ---- What is said when it is set up


def refused(*options):
    done = subprocess.run([SNAPCTL, "export", "vol", *[str(o) for o in options]], capture_output=True, text=True,
                          timeout=30, check=False)
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_tcp_that_others_reach_needs_tls_or_insecure(volume, keys):
    psk = ("--tls-psk", keys / "keys.psk")
    assert "--insecure" in refused("--tcp", "0.0.0.0:0")
    assert "--insecure" in refused("--tcp", "0.0.0.0:0", *psk, "--tls", "allowed")
    assert "--insecure" in refused("--tcp", "0.0.0.0:0", *psk, "--tls", "off")
    with export("--tcp", "0.0.0.0:0", *psk) as running:
        assert int(sh("nbdinfo", "--size", running.with_psk(keys / "keys.psk"))) == SIZE
    with export("--tcp", "0.0.0.0:0", "--insecure") as running:
        assert int(sh("nbdinfo", "--size", running.uri)) == SIZE


def test_what_is_wrong_with_the_credentials_is_said_in_a_line(volume, keys, tmp_path):
    assert "there is no such file" in refused("--tls-certificates", tmp_path)
    assert "there is no such file" in refused("--tls-psk", tmp_path / "none.psk")
    assert "--tls-certificates" in refused("--tls", "required")
    mixed = tmp_path / "mixed"
    shutil.copytree(keys / "server", mixed)
    shutil.copy(keys / "client/client-key.pem", mixed / "server-key.pem")
    assert "this is not the key of the certificate" in refused("--tls-certificates", mixed)


def test_a_key_that_others_can_read_is_warned_of(volume, keys, tmp_path):
    psk = psk_file(tmp_path / "open.psk")
    psk.chmod(0o644)
    with export("--tcp", "127.0.0.1:0", "--tls-psk", psk) as running:
        pass
    assert f"chmod 600 {psk}" in running.log
