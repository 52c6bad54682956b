"""A small RTSP server for tests: FFmpeg sends the RTP packets of a film again and again."""

from __future__ import annotations

import socketserver
import subprocess
import threading
from pathlib import Path

SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=film\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 32\r\na=control:film\r\n"
)
"""Describes one stream of MPEG video, whose RTP payload type is 32."""


class Session(socketserver.StreamRequestHandler):
    """The requests of one client."""

    server: RtspServer

    def handle(self) -> None:
        ports = ""
        while request := self.rfile.readline().decode():
            method, address = request.split()[:2]
            fields = {}
            while line := self.rfile.readline().decode().strip():
                name, _, value = line.partition(":")
                fields[name.lower()] = value.strip()
            answer, body = {"CSeq": fields["cseq"], "Session": "1"}, ""
            if method == "DESCRIBE":
                body = SDP
                answer |= {"Content-Type": "application/sdp", "Content-Base": f"{address}/"}
                answer["Content-Length"] = str(len(SDP))
            elif method == "SETUP":
                ports = fields["transport"].partition("client_port=")[2]
                answer["Transport"] = f"{fields['transport']};server_port=6970-6971"
            elif method == "OPTIONS":
                answer["Public"] = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"
            head = "".join(f"{name}: {value}\r\n" for name, value in answer.items())
            self.wfile.write(f"RTSP/1.0 200 OK\r\n{head}\r\n{body}".encode())
            if method == "PLAY":
                self.server.play(ports.partition("-")[0])
            if method == "TEARDOWN":
                return


class RtspServer(socketserver.ThreadingTCPServer):
    """Serves a film to the clients of a port until it is killed.

    Args:
        film: A file of MPEG-2 video.
        port: The port; 0: any.
    """

    allow_reuse_address = daemon_threads = True

    def __init__(self, film: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Session)
        self.film, self.senders = film, list[subprocess.Popen[bytes]]()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self.thread.start()

    @property
    def address(self) -> str:
        return f"rtsp://127.0.0.1:{self.server_address[1]}/film"

    def play(self, port: str) -> None:
        command = ["ffmpeg", "-v", "error", "-re", "-stream_loop", "-1", "-i", str(self.film)]
        command += ["-c", "copy", "-f", "rtp", f"rtp://127.0.0.1:{port}"]
        self.senders.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

    def kill(self) -> None:
        for sender in self.senders:
            sender.kill()
            sender.wait()
        self.shutdown()
        self.server_close()
        self.thread.join()
