// One page, one script, one style sheet, under names that stay the same: the built files are kept in the repository.
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  build: {
    outDir: "built",
    assetsInlineLimit: 0,
    modulePreload: false,
    target: "es2022",
    chunkSizeWarningLimit: 1000,
    rollupOptions: {
      output: {
        entryFileNames: "dashboard.js",
        assetFileNames: "dashboard[extname]",
        codeSplitting: false,
      },
    },
  },
});
