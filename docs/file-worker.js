// Browsers refuse a Worker on a page that was opened as a file. The search worker then runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inner = this.frame.contentWindow
      inner.postMessage = data => setTimeout(() => this.onmessage && this.onmessage({ data }))
      const script = inner.document.createElement("script")
      script.src = url
      script.onload = () => {
        this.ready = true
        this.waiting.splice(0).forEach(data => inner.onmessage({ data }))
      }
      script.onerror = event => this.onerror && this.onerror(event)
      inner.document.body.append(script)
    }
    postMessage(data) {
      this.ready ? this.frame.contentWindow.onmessage({ data }) : this.waiting.push(data)
    }
    terminate() {
      this.frame.remove()
    }
  }
}
