"""Who may connect: TLS, client certificates, renewal, and what a gateway says when it is not set up right."""
import os
import socket
import subprocess
import tempfile
import unittest

import grpc

from client import Client
from cluster import BIN, MODEL, MODEL_NAME, Cluster, wait_until


class Authority:
    """Makes keys and certificates in a folder, as an operator would."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.openssl("req", "-x509", *self.new_key(name), "-out", self.path(name + ".pem"), "-days", 2, "-subj", f"/CN={name}")

    def path(self, name):
        return os.path.join(self.folder, name)

    def openssl(self, *arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    def new_key(self, name):
        return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self.path(name + ".key")

    def issue(self, name, host="localhost"):
        """Paths of a certificate (with the authority's behind it) and its key."""
        request, certificate = self.path(name + ".csr"), self.path(name + ".pem")
        self.openssl("req", *self.new_key(name), "-out", request, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{host},IP:127.0.0.1")
        self.openssl("x509", "-req", "-in", request, "-CA", self.path(self.name + ".pem"), "-CAkey", self.path(self.name + ".key"),
                     "-CAcreateserial", "-days", 2, "-copy_extensions", "copy", "-out", certificate)  # fmt: skip
        return certificate, self.path(name + ".key")

    def certificate(self):
        return read(self.path(self.name + ".pem"))


def read(path):
    with open(path, "rb") as file:
        return file.read()


def gateway_alone(*arguments):
    """Starts a gateway whose scheduler is nowhere, and returns (exit code, what it said) once it has ended by itself."""
    command = [os.path.join(BIN, "weir-gateway"), "--model", f"{MODEL_NAME}={MODEL}", "--scheduler", "unix:/nowhere", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout + done.stderr


class TlsTest(unittest.TestCase):
    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.authority = Authority(self.folder, "authority")
        self.certificate, self.key = self.authority.issue("server")

    def cluster(self, *gateway, worker=()):
        flags = ["--tls-certificate", self.certificate, "--tls-key", self.key, *gateway]
        return self.enterContext(Cluster(tp=1, dp=1, worker=worker, gateway=flags))

    def client(self, cluster, root=None, **pair):
        credentials = grpc.ssl_channel_credentials(root or self.authority.certificate(), **pair)
        options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.secure_channel(f"127.0.0.1:{cluster.port}", credentials, options)
        return self.enterContext(Client(cluster.port, channel=channel))

    def assert_no_connection(self, client):
        stream = client.generate([1], 1, timeout_s=5).join()
        self.assertEqual(stream.code, grpc.StatusCode.UNAVAILABLE, stream.message)
        self.assertIsNone(stream.started)

    def test_only_those_who_trust_the_certificate_connect_and_never_in_plain_text(self):
        cluster = self.cluster()
        stream = self.client(cluster).generate([300], 20).join()
        self.assertEqual(stream.code, grpc.StatusCode.OK, stream.message)
        self.assertEqual(len(stream.token_ids), 20)

        self.assert_no_connection(self.enterContext(Client(cluster.port)))
        stranger = Authority(self.folder, "stranger")
        self.assert_no_connection(self.client(cluster, root=stranger.certificate()))

        self.assertEqual(self.client(cluster).generate([300], 2).join().code, grpc.StatusCode.OK)
        self.assertEqual(cluster.gateway.exit_codes, [])

    def test_a_client_authority_asks_clients_for_a_certificate(self):
        cluster = self.cluster("--tls-client-ca", self.authority.path("authority.pem"))
        known = dict(zip(("certificate_chain", "private_key"), map(read, self.authority.issue("desk"))))
        stream = self.client(cluster, **known).generate([300], 3).join()
        self.assertEqual(stream.code, grpc.StatusCode.OK, stream.message)
        self.assert_no_connection(self.client(cluster))
        stranger = Authority(self.folder, "stranger")
        unknown = dict(zip(("certificate_chain", "private_key"), map(read, stranger.issue("other_desk"))))
        self.assert_no_connection(self.client(cluster, **unknown))

    def test_the_command_line_connects_with_a_certificate_of_its_own(self):
        cluster = self.cluster("--tls-client-ca", self.authority.path("authority.pem"))
        certificate, key = self.authority.issue("desk")
        command = [os.path.join(BIN, "weir"), "complete", "--server", f"127.0.0.1:{cluster.port}", "--max-tokens", "3",
                   "--tls", "--tls-ca", self.authority.path("authority.pem")]  # fmt: skip

        def complete(*flags):
            done = subprocess.run([*command, *flags, "Hello"], capture_output=True, text=True, timeout=30)
            return done.returncode, done.stdout + done.stderr

        code, said = complete("--tls-certificate", certificate, "--tls-key", key)
        self.assertEqual(code, 0, said)
        code, said = complete()
        self.assertEqual(code, 1, said)
        code, said = complete("--tls-certificate", certificate)
        self.assertEqual(code, 2, said)
        self.assertIn("--tls-key", said)

    def test_a_renewed_certificate_is_shown_without_a_restart_and_streams_go_on(self):
        cluster = self.cluster(worker=("--backend", "reference"))  # slow enough that the stream outlasts the renewal anywhere
        running = self.client(cluster)
        stream = running.generate([300], 2500)
        stream.wait_tokens(5)
        successor = Authority(self.folder, "successor")
        certificate, key = successor.issue("renewed")

        os.replace(certificate, self.certificate)  # the certificate first: for a moment it has no key
        wait_until(lambda: "does not belong to the certificate" in cluster.gateway.log(), 10, "the gateway has seen half a pair")
        self.assertEqual(self.client(cluster).generate([300], 2).join().code, grpc.StatusCode.OK)  # what was read before

        os.replace(key, self.key)
        wait_until(lambda: cluster.gateway.log().count("TLS certificate: valid until") == 2, 10, "the gateway has read the pair")
        self.assertEqual(self.client(cluster, root=successor.certificate()).generate([300], 2).join().code, grpc.StatusCode.OK)
        self.assert_no_connection(self.client(cluster))
        stream.cancel()
        self.assertEqual(stream.join().code, grpc.StatusCode.CANCELLED)
        self.assertEqual(running.generate([300], 2).join().code, grpc.StatusCode.OK)  # on its old connection

    def test_files_that_cannot_serve_are_told_at_the_start(self):
        garbage, empty, locked = (self.authority.path(name) for name in ("garbage", "empty", "locked"))
        for path, content in ((garbage, b"\x00\xff not PEM"), (empty, b"")):
            with open(path, "wb") as file:
                file.write(content)
        self.authority.openssl("pkey", "-in", self.key, "-aes128", "-passout", "pass:secret", "-out", locked)
        _, other_key = self.authority.issue("other")
        missing = self.authority.path("missing")
        cases = [
            (missing, self.key, [missing, "No such file"]),
            (self.certificate, missing, [missing, "No such file"]),
            (garbage, self.key, [garbage, "no certificate in PEM form"]),
            (self.key, self.key, [self.key, "no certificate in PEM form"]),
            (self.certificate, garbage, [garbage, "no private key in PEM form"]),
            (self.certificate, empty, [empty, "no private key in PEM form"]),
            (self.certificate, self.certificate, [self.certificate, "no private key in PEM form"]),
            (self.certificate, locked, [locked, "without a password"]),
            (self.certificate, other_key, [other_key, self.certificate, "give the key that the certificate was made for"]),
        ]
        for certificate, key, expected in cases:
            with self.subTest(certificate=certificate, key=key):
                code, said = gateway_alone("--listen", "127.0.0.1:0", "--tls-certificate", certificate, "--tls-key", key)
                self.assertEqual(code, 1, said)
                for text in expected:
                    self.assertIn(text, said)
        pair = ("--tls-certificate", self.certificate, "--tls-key", self.key)
        for flags, expected in (
            (pair[:2], "go together"),
            (pair[2:], "go together"),
            (("--tls-client-ca", self.certificate), "needs --tls-certificate and --tls-key"),
            ((*pair, "--tls-client-ca", garbage), garbage),
        ):
            with self.subTest(flags=flags):
                code, said = gateway_alone("--listen", "127.0.0.1:0", *flags)
                self.assertEqual(code, 1, said)
                self.assertIn(expected, said)


class ListenTest(unittest.TestCase):
    def test_without_keys_only_this_machine_may_connect(self):
        for address in ("0.0.0.0:0", "[::]:0", f"{socket.gethostname()}:0", "127.0.0.1.example.org:0"):
            with self.subTest(address=address):
                code, said = gateway_alone("--listen", address)
                self.assertEqual(code, 1, said)
                for text in (address, "open to other machines", "--keys FILE", "weir keys create", "127.0.0.1"):
                    self.assertIn(text, said)

    def test_with_keys_every_address_is_allowed_and_missing_tls_is_told(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        keys = os.path.join(folder, "keys.yaml")
        subprocess.run([os.path.join(BIN, "weir"), "keys", "create", "--file", keys, "--tenant", "foshan"], check=True, capture_output=True)
        cluster = self.enterContext(Cluster(tp=1, dp=1, gateway=["--keys", keys], host="0.0.0.0"))
        self.assertIn("keys and texts cross the network unencrypted", cluster.gateway.log())
        with Client(cluster.port) as nobody:
            self.assertEqual(nobody.generate([1], 1).join().code, grpc.StatusCode.UNAUTHENTICATED)

    def test_an_address_that_is_taken_is_told(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            code, said = gateway_alone("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        self.assertEqual(code, 1, said)
        self.assertIn("is another process there", said)


if __name__ == "__main__":
    unittest.main()
