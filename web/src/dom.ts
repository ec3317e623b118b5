// Making elements. Text from data goes through textContent only: it is shown and never run.
type Props = Record<string, string | number | boolean | ((event: never) => void) | undefined>;

export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K, props: Props = {}, ...children: (Node | string | null)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value as EventListener);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) if (child !== null) element.append(child);
  return element;
}

export const $ = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;

/** Scroll a box, and nothing around it, until one of its elements is in view; `margin` px of its top may be covered. */
export function reveal(box: HTMLElement, element: Element | null, margin = 0): void {
  if (!element) return;
  const outer = box.getBoundingClientRect(), inner = element.getBoundingClientRect();
  if (inner.top < outer.top + margin) box.scrollTop -= outer.top + margin - inner.top;
  else if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom;
}

export const css = (name: string): string => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
