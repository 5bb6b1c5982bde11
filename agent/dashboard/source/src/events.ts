// What has happened, newest first.

import { byId, clock, make } from "./dom";
import type { Store } from "./store";

const SHOWN = 60;

export function drawEvents(store: Store): void {
  if (!store.eventsChanged) return;
  byId("events").replaceChildren(
    ...store.events.slice(0, SHOWN).map((event) => {
      const item = make("li");
      item.append(
        make("time", "", clock(event.at)),
        make("span", "where", event.host),
        make("span", "kind", event.kind),
        make("span", "container", event.container),
      );
      return item;
    }),
  );
}
