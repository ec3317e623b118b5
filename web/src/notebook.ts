// The frame around the page in a notebook (anywidget): hands questions to the kernel and its answers back. The page lives
// in a frame of its own, so that neither its styles nor its keys reach the notebook.
interface Model {
  get(name: string): unknown;
  send(content: unknown): void;
  on(name: string, listener: (message: { id: string; status: number; type: string }, buffers: DataView[]) => void): void;
  off(name: string, listener: unknown): void;
}

function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const frame = document.createElement("iframe");
  const url = URL.createObjectURL(new Blob([model.get("page") as string], { type: "text/html" }));
  const { port1, port2 } = new MessageChannel();
  const begin = (event: MessageEvent) => {
    if (event.source !== frame.contentWindow || event.data !== "vlascope-ready") return;
    frame.contentWindow!.postMessage("vlascope", "*", [port2]);
    removeEventListener("message", begin);
  };
  const answer = (message: { id: string; status: number; type: string }, buffers: DataView[]) => {
    const view = buffers[0];
    const body = view ? view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength) : new ArrayBuffer(0);
    port1.postMessage({ ...message, body });
  };
  port1.onmessage = (event) => model.send(event.data);
  model.on("msg:custom", answer);
  addEventListener("message", begin);
  frame.title = "vlascope";
  frame.style.cssText = `display:block;width:100%;height:${Number(model.get("height"))}px;border:1px solid #8884;border-radius:4px`;
  frame.src = url;
  el.append(frame);
  return () => {
    removeEventListener("message", begin);
    model.off("msg:custom", answer);
    URL.revokeObjectURL(url);
    frame.remove();
  };
}

export default { render };
